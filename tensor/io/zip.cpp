#include "tensor/io/zip.h"

#include <zlib.h>

#include <algorithm>
#include <cstring>

#include "tensor/core/error.h"

namespace lowbit {
namespace {

constexpr const char* kOp = "zip";
constexpr uint32_t kLocal = 0x04034b50, kCentral = 0x02014b50, kEnd = 0x06054b50, kEnd64 = 0x06064b50,
                   kLocator = 0x07064b50;
constexpr uint64_t kMaxRatio = 1032;  // of deflate

template <class T>
T le(const std::string& s, size_t at) {
  LOWBIT_CHECK(at + sizeof(T) <= s.size(), io, kOp, "record is too short");
  T v;
  std::memcpy(&v, s.data() + at, sizeof v);
  return v;
}

template <class T>
void append(std::string& s, T v) {
  s.append(reinterpret_cast<const char*>(&v), sizeof v);
}

/// Takes the 64-bit values that replace all-ones fields, in the order of the specification.
void apply_zip64(const std::string& extra, std::vector<uint64_t*> fields, const std::string& where) {
  std::erase_if(fields, [](const uint64_t* f) { return *f != 0xffffffffu; });
  if (fields.empty()) return;
  for (size_t at = 0; at + 4 <= extra.size();) {
    const uint16_t id = le<uint16_t>(extra, at), size = le<uint16_t>(extra, at + 2);
    if (id == 1 && size >= 8 * fields.size()) {
      for (size_t i = 0; i < fields.size(); ++i) *fields[i] = le<uint64_t>(extra, at + 4 + 8 * i);
      return;
    }
    at += 4u + size;
  }
  fail(ErrorKind::io, kOp, where + ": zip64 sizes are missing");
}

std::string inflate_raw(const std::string& in, uint64_t size, const std::string& where) {
  std::string out(size, '\0');
  z_stream z{};
  LOWBIT_CHECK(::inflateInit2(&z, -15) == Z_OK, run, kOp, "zlib cannot start");
  uint64_t in_left = in.size(), out_left = size;
  z.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(in.data()));
  z.next_out = reinterpret_cast<Bytef*>(out.data());
  int status = Z_OK;
  while (status == Z_OK) {
    const uInt a = uInt(std::min<uint64_t>(in_left, 1u << 30)),
               b = uInt(std::min<uint64_t>(out_left, 1u << 30));
    z.avail_in = a, z.avail_out = b;
    status = ::inflate(&z, Z_NO_FLUSH);
    in_left -= a - z.avail_in, out_left -= b - z.avail_out;
    if (status == Z_OK && a == z.avail_in && b == z.avail_out) break;  // no progress
  }
  ::inflateEnd(&z);
  LOWBIT_CHECK(status == Z_STREAM_END && out_left == 0 && in_left == 0, io, kOp, where,
               ": compressed data is damaged");
  return out;
}

}  // namespace

uint32_t crc32_of(const void* data, uint64_t n, uint32_t before) {
  uLong crc = before;
  for (const auto* p = static_cast<const Bytef*>(data); n > 0;) {
    const uInt step = uInt(std::min<uint64_t>(n, 1u << 30));
    crc = ::crc32(crc, p, step);
    p += step, n -= step;
  }
  return uint32_t(crc);
}

bool ZipReader::recognises(const ByteSource& source) {
  return source.size() >= 22 &&
         (source.read_le<uint32_t>(0) == kLocal || source.read_le<uint32_t>(0) == kEnd);
}

ZipReader::ZipReader(ByteSource source) : source_(std::move(source)) {
  const uint64_t n = source_.size(), tail = std::min<uint64_t>(n, 22 + 65535);
  const std::string end = source_.read_string(n - tail, tail);
  size_t at = end.size() < 22 ? std::string::npos : end.size() - 22;
  auto is_end = [&](size_t i) {
    return le<uint32_t>(end, i) == kEnd && i + 22 + le<uint16_t>(end, i + 20) == end.size();
  };
  while (at != std::string::npos && !is_end(at)) at = at == 0 ? std::string::npos : at - 1;
  LOWBIT_CHECK(at != std::string::npos, io, kOp, name(), ": not a zip archive or truncated (no end record)");
  uint64_t count = le<uint16_t>(end, at + 10), size = le<uint32_t>(end, at + 12),
           offset = le<uint32_t>(end, at + 16);
  const uint64_t end_offset = n - tail + at;
  if (count == 0xffff || size == 0xffffffffu || offset == 0xffffffffu) {
    LOWBIT_CHECK(end_offset >= 20 && source_.read_le<uint32_t>(end_offset - 20) == kLocator, io, kOp, name(),
                 ": zip64 locator is missing");
    const uint64_t end64 = source_.read_le<uint64_t>(end_offset - 12);
    LOWBIT_CHECK(end64 <= n && n - end64 >= 56 && source_.read_le<uint32_t>(end64) == kEnd64, io, kOp, name(),
                 ": zip64 end record is missing");
    count = source_.read_le<uint64_t>(end64 + 32);
    size = source_.read_le<uint64_t>(end64 + 40);
    offset = source_.read_le<uint64_t>(end64 + 48);
  }
  LOWBIT_CHECK(offset <= end_offset && size <= end_offset - offset, io, kOp, name(),
               ": directory lies outside the file");
  parse_directory(offset, size, count);
}

void ZipReader::parse_directory(uint64_t offset, uint64_t size, uint64_t count) {
  const std::string dir = source_.read_string(offset, size);
  uint64_t stored = 0;
  size_t at = 0;
  for (uint64_t i = 0; i < count; ++i) {
    LOWBIT_CHECK(at + 46 <= dir.size() && le<uint32_t>(dir, at) == kCentral, io, kOp, name(),
                 ": directory is damaged");
    const size_t names = le<uint16_t>(dir, at + 28), extras = le<uint16_t>(dir, at + 30),
                 comment = le<uint16_t>(dir, at + 32);
    LOWBIT_CHECK(names + extras + comment <= dir.size() - at - 46, io, kOp, name(), ": directory is damaged");
    const std::string entry_name = dir.substr(at + 46, names);
    const std::string where = str_cat(name(), ": entry ", printable(entry_name));
    Entry e;
    const uint16_t flags = le<uint16_t>(dir, at + 8), method = le<uint16_t>(dir, at + 10);
    LOWBIT_CHECK((flags & 1) == 0, io, kOp, where, " is encrypted");
    LOWBIT_CHECK(method == 0 || method == 8, io, kOp, where, " uses compression method ", method,
                 ", only stored and deflate are supported");
    e.deflated = method == 8;
    e.crc = le<uint32_t>(dir, at + 16);
    e.compressed = le<uint32_t>(dir, at + 20), e.size = le<uint32_t>(dir, at + 24),
    e.header = le<uint32_t>(dir, at + 42);
    apply_zip64(dir.substr(at + 46 + names, extras), {&e.size, &e.compressed, &e.header}, where);
    const bool fits = e.compressed <= source_.size() && checked_add(stored, e.compressed, stored) &&
                      stored <= source_.size();
    LOWBIT_CHECK(fits && (e.deflated ? e.size <= e.compressed * kMaxRatio : e.size == e.compressed), io, kOp,
                 where, ": sizes do not fit the file");
    if (!entry_name.ends_with('/'))
      LOWBIT_CHECK(entries_.emplace(entry_name, e).second, io, kOp, where, " appears twice");
    at += 46 + names + extras + comment;
  }
  LOWBIT_CHECK(at == dir.size(), io, kOp, name(), ": directory is damaged");
}

std::string ZipReader::read(const std::string& entry_name) const {
  const auto it = entries_.find(entry_name);
  const std::string where = str_cat(name(), ": entry ", printable(entry_name));
  LOWBIT_CHECK(it != entries_.end(), io, kOp, where, " is missing");
  const Entry& e = it->second;
  LOWBIT_CHECK(e.header <= source_.size() && source_.size() - e.header >= 30 &&
                   source_.read_le<uint32_t>(e.header) == kLocal,
               io, kOp, where, ": local header is damaged");
  const uint64_t begin =
      e.header + 30 + source_.read_le<uint16_t>(e.header + 26) + source_.read_le<uint16_t>(e.header + 28);
  std::string data = source_.read_string(begin, e.compressed);
  if (e.deflated) data = inflate_raw(data, e.size, where);
  LOWBIT_CHECK(crc32_of(data.data(), data.size()) == e.crc, io, kOp, where, " is damaged (wrong checksum)");
  return data;
}

void ZipWriter::put(const std::string& bytes) {
  out_.write(bytes);
  position_ += bytes.size();
}

void ZipWriter::add(const std::string& name, const void* data, uint64_t size) {
  constexpr uint64_t kBig = 0xffffffffu;
  const bool big = size >= kBig, far = position_ >= kBig;
  const uint32_t crc = crc32_of(data, size), size32 = uint32_t(std::min(size, kBig));
  std::string extra;
  if (big) append<uint16_t>(extra, 1), append<uint16_t>(extra, 16), append(extra, size), append(extra, size);
  const uint64_t pad = (64 - (position_ + 30 + name.size() + extra.size() + 4) % 64) % 64;
  append<uint16_t>(extra, 0x4246), append<uint16_t>(extra, uint16_t(pad));  // torch's padding record "FB"
  extra.append(pad, 'Z');
  std::string common;  // the fields that local and central headers share
  append<uint16_t>(common, big ? 45 : 20), append<uint16_t>(common, 0x0800), append<uint16_t>(common, 0);
  append<uint16_t>(common, 0),
      append<uint16_t>(common, 0x21);  // 1980-01-01: the bytes depend on the content alone
  append(common, crc), append(common, size32), append(common, size32), append(common, uint16_t(name.size()));
  std::string central_extra;
  if (big) append(central_extra, size), append(central_extra, size);
  if (far) append(central_extra, position_);
  if (big || far) {
    std::string head;
    append<uint16_t>(head, 1), append(head, uint16_t(central_extra.size()));
    central_extra = head + central_extra;
  }
  append(directory_, kCentral), append<uint16_t>(directory_, 45);
  directory_ += common;
  append(directory_, uint16_t(central_extra.size())), directory_.append(10, '\0');
  append(directory_, uint32_t(std::min(position_, kBig)));
  directory_ += name + central_extra;
  std::string local;
  append(local, kLocal);
  local += common;
  append(local, uint16_t(extra.size()));
  put(local + name + extra);
  out_.write(data, size);
  position_ += size;
  ++count_;
}

void ZipWriter::finish() {
  const uint64_t begin = position_, size = directory_.size();
  put(directory_);
  const bool big = begin >= 0xffffffffu || count_ >= 0xffff;
  std::string end;
  if (big) {
    append(end, kEnd64), append<uint64_t>(end, 44), append<uint16_t>(end, 45), append<uint16_t>(end, 45);
    append<uint32_t>(end, 0), append<uint32_t>(end, 0), append(end, count_), append(end, count_);
    append(end, size), append(end, begin);
    append(end, kLocator), append<uint32_t>(end, 0), append(end, begin + size), append<uint32_t>(end, 1);
  }
  append(end, kEnd), append<uint32_t>(end, 0);
  const auto count16 = uint16_t(big ? 0xffff : count_);
  append(end, count16), append(end, count16);
  append(end, uint32_t(big ? 0xffffffffu : size)), append(end, uint32_t(big ? 0xffffffffu : begin)),
      append<uint16_t>(end, 0);
  put(end);
}

}  // namespace lowbit
