#pragma once
// The bytes of a packed label file, as PackWriter documents them.

#include <cstring>
#include <string>
#include <string_view>

#include "data/soft_label/soft_label.h"

namespace lowbit::pack {

inline constexpr std::string_view kMagic = "lowbit labels 1\n";
inline constexpr uint64_t kFooter = 8 + 8 + 8 + 4 + kMagic.size();

template <class T>
void put(std::string& out, T v) {
  out.append(reinterpret_cast<const char*>(&v), sizeof v);
}
template <class T>
T take(const char*& at) {
  T v;
  std::memcpy(&v, at, sizeof v);
  at += sizeof v;
  return v;
}

/// Form of the records.
struct Layout {
  SoftLabelType type = SoftLabelType::hard;
  int64_t ids = 0, probabilities = 0;
  bool half = false, wide = false;

  int64_t real_bytes() const { return half ? 2 : 4; }
  int64_t record_bytes() const {
    return 4 * real_bytes() + 1 + ids * (wide ? 4 : 2) + probabilities * real_bytes() + 4;
  }
  /// Every value is kept exactly.
  bool holds(const CropLabels& l) const;
  /// The record of crop i.
  std::string encode(const CropLabels& l, int64_t i) const;
  /// Appends the crop of a record. Errors  io, naming `where`: a wrong checksum
  void decode(const std::string& record, const std::string& where, CropLabels& l) const;
};

std::string index_entry(const std::string& key, uint64_t first_record, int64_t crops);
/// What follows the records: index, header, footer.
std::string tail(const Layout& layout, const std::string& index, uint64_t records);

}  // namespace lowbit::pack
