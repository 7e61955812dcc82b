#include "train/metrics/event_writer.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>
#include <vector>

#include "tensor/core/error.h"
#include "train/config/build_info.h"

namespace lowbit {
namespace {

constexpr std::array<uint32_t, 256> kCrcTable = [] {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t c = i;
    for (int k = 0; k < 8; ++k) c = c & 1 ? 0x82F63B78u ^ (c >> 1) : c >> 1;
    table[i] = c;
  }
  return table;
}();

double wall_time() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

template <class T>
void put_le(std::string& s, T v) {
  char bytes[sizeof v];
  std::memcpy(bytes, &v, sizeof v);
  s.append(bytes, sizeof v);
}

void put_varint(std::string& s, uint64_t v) {
  for (; v >= 128; v >>= 7) s += char(v | 128);
  s += char(v);
}

// Protocol-buffer fields: (number << 3 | wire type), wire types 0 varint, 1 eight bytes, 2 length-delimited,
// 5 four bytes.
void put_double(std::string& s, int field, double v) {
  put_varint(s, uint64_t(field) << 3 | 1);
  put_le(s, v);
}
void put_float(std::string& s, int field, float v) {
  put_varint(s, uint64_t(field) << 3 | 5);
  put_le(s, v);
}
void put_bytes(std::string& s, int field, std::string_view v) {
  put_varint(s, uint64_t(field) << 3 | 2);
  put_varint(s, v.size());
  s += v;
}
void put_doubles(std::string& s, int field, const std::vector<double>& v) {
  std::string packed;
  for (double x : v) put_le(packed, x);
  put_bytes(s, field, packed);
}

/// Event {wall_time 1, step 2, summary 5 {value 1 {tag 1, …}}}
std::string summary_event(int64_t step, std::string_view value) {
  std::string summary, event;
  put_bytes(summary, 1, value);
  put_double(event, 1, wall_time());
  put_varint(event, 2 << 3);
  put_varint(event, uint64_t(step));
  put_bytes(event, 5, summary);
  return event;
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  uint32_t c = 0xFFFFFFFFu;
  for (char b : bytes) c = kCrcTable[(c ^ uint8_t(b)) & 255] ^ (c >> 8);
  return ~c;
}

uint32_t masked_crc32c(std::string_view bytes) { return std::rotr(crc32c(bytes), 15) + 0xA282EAD8u; }

std::string event_record(std::string_view data) {
  std::string record;
  put_le(record, uint64_t(data.size()));
  put_le(record, masked_crc32c(record));
  record += data;
  put_le(record, masked_crc32c(data));
  return record;
}

EventWriter::EventWriter(const std::string& folder)
    : file_(str_cat(folder, "/events.out.tfevents.", int64_t(wall_time()), ".", host_name(), ".", getpid())) {
  std::string event;
  put_double(event, 1, wall_time());
  put_bytes(event, 3, "brain.Event:2");
  file_.write(event_record(event));
}

void EventWriter::scalar(std::string_view tag, int64_t step, double value) {
  std::string v;
  put_bytes(v, 1, tag);
  put_float(v, 2, float(value));
  file_.write(event_record(summary_event(step, v)));
}

void EventWriter::histogram(std::string_view tag, int64_t step, std::span<const float> values) {
  constexpr int kBuckets = 64;
  double lo = INFINITY, hi = -INFINITY, num = 0, sum = 0, squares = 0;
  for (float x : values) {
    if (!std::isfinite(x)) continue;
    lo = std::min(lo, double(x)), hi = std::max(hi, double(x));
    ++num, sum += x, squares += double(x) * x;
  }
  if (num == 0) return;
  const double width = hi > lo ? (hi - lo) / kBuckets : 1;
  std::vector<double> limits, counts(kBuckets, 0.0);
  for (int i = 1; i <= kBuckets; ++i) limits.push_back(lo + width * i);
  for (float x : values)
    if (std::isfinite(x))
      ++counts[size_t(std::min<double>(kBuckets - 1, std::floor((double(x) - lo) / width)))];
  std::string h, v;
  put_double(h, 1, lo), put_double(h, 2, hi), put_double(h, 3, num), put_double(h, 4, sum);
  put_double(h, 5, squares), put_doubles(h, 6, limits), put_doubles(h, 7, counts);
  put_bytes(v, 1, tag);
  put_bytes(v, 5, h);
  file_.write(event_record(summary_event(step, v)));
}

}  // namespace lowbit
