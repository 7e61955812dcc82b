#include "data/soft_label/pack_format.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "tensor/core/error.h"
#include "tensor/hd/half.h"
#include "tensor/io/zip.h"

namespace lowbit::pack {

namespace {

void put_real(std::string& out, float x, bool half) {
  if (half)
    put(out, f16(x).bits);
  else
    put(out, x);
}
float take_real(const char*& at, bool half) {
  if (!half) return take<float>(at);
  f16 h;
  h.bits = take<uint16_t>(at);
  return float(h);
}

}  // namespace

bool Layout::holds(const CropLabels& l) const {
  const auto fits = [&](float x) { return !half || float(f16(x)) == x; };
  bool ok = std::all_of(l.probabilities.begin(), l.probabilities.end(), fits);
  for (const auto& c : l.crops) ok = ok && fits(c.top) && fits(c.left) && fits(c.height) && fits(c.width);
  return ok && (wide || std::all_of(l.ids.begin(), l.ids.end(), [](int32_t id) { return id <= UINT16_MAX; }));
}

std::string Layout::encode(const CropLabels& l, int64_t i) const {
  std::string out;
  const CropLabels::Crop& c = l.crops[size_t(i)];
  for (const float x : {c.top, c.left, c.height, c.width}) put_real(out, x, half);
  put(out, uint8_t(c.flip));
  for (int64_t k = 0; k < ids; ++k) {
    const auto id = uint32_t(l.ids[size_t(i * ids + k)]);
    if (wide)
      put(out, id);
    else
      put(out, uint16_t(id));
  }
  for (int64_t k = 0; k < probabilities; ++k)
    put_real(out, l.probabilities[size_t(i * probabilities + k)], half);
  put(out, crc32_of(out.data(), out.size()));
  return out;
}

void Layout::decode(const std::string& record, const std::string& where, CropLabels& l) const {
  const char* at = record.data();
  const char* crc = at + record.size() - 4;
  LOWBIT_CHECK(crc32_of(at, record.size() - 4) == take<uint32_t>(crc), io, "labels", where,
               ": a record is damaged (wrong checksum)");
  CropLabels::Crop c;
  for (float* x : {&c.top, &c.left, &c.height, &c.width}) *x = take_real(at, half);
  c.flip = take<uint8_t>(at) != 0;
  l.crops.push_back(c);
  for (int64_t k = 0; k < ids; ++k) l.ids.push_back(int32_t(wide ? take<uint32_t>(at) : take<uint16_t>(at)));
  for (int64_t k = 0; k < probabilities; ++k) l.probabilities.push_back(take_real(at, half));
}

std::string index_entry(const std::string& key, uint64_t first_record, int64_t crops) {
  LOWBIT_CHECK(key.size() <= UINT16_MAX, io, "labels", "name of an image is too long: ", key);
  std::string out;
  put(out, uint16_t(key.size()));
  out += key;
  put(out, first_record);
  put(out, uint32_t(crops));
  return out;
}

std::string tail(const Layout& l, const std::string& index, uint64_t records) {
  const nlohmann::json header = {{"type", soft_label_name(l.type, l.ids)},
                                 {"ids", l.ids},
                                 {"probabilities", l.probabilities},
                                 {"half", l.half},
                                 {"wide_ids", l.wide},
                                 {"records", records}};
  const std::string json = header.dump();
  std::string out = index + json;
  const uint32_t crc = crc32_of(out.data(), out.size());
  put(out, uint64_t(json.size()));
  put(out, uint64_t(kMagic.size() + records * uint64_t(l.record_bytes())));
  put(out, uint64_t(index.size()));
  put(out, crc);
  out += kMagic;
  return out;
}

}  // namespace lowbit::pack
