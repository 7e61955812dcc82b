#pragma once
// TensorBoard event files. Record: u64 length, u32 masked crc of the length, data, u32 masked crc of the
// data; data is an Event message in protocol-buffer encoding. Layout: dependencies of TensorBoard,
// tensorflow/core/util/event.proto and framework/summary.proto.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "train/metrics/append_file.h"

namespace lowbit {

/// CRC-32C (Castagnoli, reflected polynomial 0x82F63B78).
uint32_t crc32c(std::string_view bytes);
/// rotate_right(crc, 15) + 0xA282EAD8, as the record format wants it.
uint32_t masked_crc32c(std::string_view bytes);
/// Bytes of one record.
std::string event_record(std::string_view data);

class EventWriter {
 public:
  /// Opens `<folder>/events.out.tfevents.<unixtime>.<host>.<pid>`.
  explicit EventWriter(const std::string& folder);
  void scalar(std::string_view tag, int64_t step, double value);
  /// Values that are not finite are left out; nothing is written when none remain.
  void histogram(std::string_view tag, int64_t step, std::span<const float> values);
  const std::string& path() const { return file_.path(); }

 private:
  AppendFile file_;
};

}  // namespace lowbit
