#include "tensor/io/npy.h"

#include <cctype>
#include <charconv>
#include <cstring>

#include "tensor/io/atomic_file.h"
#include "tensor/io/zip.h"

namespace lowbit {
namespace {

constexpr const char* kOp = "npy";
constexpr std::string_view kMagic = "\x93NUMPY";

struct NumpyName {
  const char* name;
  RawType type;
};
constexpr NumpyName kTypes[] = {{"f8", RawType::f64}, {"f4", RawType::f32}, {"f2", RawType::f16},
                                {"i8", RawType::i64}, {"i4", RawType::i32}, {"i2", RawType::i16},
                                {"i1", RawType::i8},  {"u1", RawType::u8},  {"u2", RawType::u16},
                                {"u4", RawType::u32}, {"u8", RawType::u64}, {"b1", RawType::b8}};

struct Header {
  std::string descr;
  bool fortran = false, has_descr = false, has_order = false, has_shape = false;
  std::vector<int64_t> shape;
};

/// The Python dict literal of a header: string keys; string, bool or tuple-of-integers values.
class HeaderParser {
 public:
  HeaderParser(const std::string& text, const std::string& where) : s_(text), where_(where) {}
  Header parse() {
    Header h;
    expect('{');
    while (!accept('}')) {
      const std::string key = string();
      expect(':');
      if (key == "descr" && !h.has_descr)
        h.descr = string(), h.has_descr = true;
      else if (key == "fortran_order" && !h.has_order)
        h.fortran = boolean(), h.has_order = true;
      else if (key == "shape" && !h.has_shape)
        h.shape = tuple(), h.has_shape = true;
      else
        bad();
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    skip();
    if (at_ != s_.size() || !h.has_descr || !h.has_order || !h.has_shape) bad();
    return h;
  }

 private:
  [[noreturn]] void bad() {
    fail(ErrorKind::io, kOp, where_ + ": header is not understood: " + printable(s_));
  }
  void skip() {
    while (at_ < s_.size() && std::isspace(static_cast<unsigned char>(s_[at_]))) ++at_;
  }
  bool accept(char c) {
    skip();
    if (at_ >= s_.size() || s_[at_] != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!accept(c)) bad();
  }
  std::string string() {
    const char quote = accept('"') ? '"' : '\'';
    if (quote == '\'') expect('\'');
    const size_t end = s_.find(quote, at_);
    if (end == std::string::npos) bad();
    const std::string r = s_.substr(at_, end - at_);
    at_ = end + 1;
    return r;
  }
  bool boolean() {
    skip();
    for (const char* word : {"True", "False"})
      if (s_.compare(at_, std::strlen(word), word) == 0) {
        at_ += std::strlen(word);
        return word[0] == 'T';
      }
    bad();
  }
  std::vector<int64_t> tuple() {
    std::vector<int64_t> r;
    expect('(');
    while (!accept(')')) {
      skip();
      int64_t v = 0;
      const auto [end, error] = std::from_chars(s_.data() + at_, s_.data() + s_.size(), v);
      if (error != std::errc{} || r.size() > 64) bad();
      at_ = size_t(end - s_.data());
      accept('L');  // long integers of Python 2
      r.push_back(v);
      if (!accept(',')) {
        expect(')');
        break;
      }
    }
    return r;
  }
  const std::string& s_;
  const std::string& where_;
  size_t at_ = 0;
};

}  // namespace

std::optional<RawType> numpy_type(const std::string& descr) {
  for (const NumpyName& t : kTypes)
    if (descr == t.name) return t.type;
  return std::nullopt;
}

Tensor reversed(const Tensor& t) {
  switch (t.ndim()) {
    case 2:
      return t.permute({1, 0}).packed();
    case 3:
      return t.permute({2, 1, 0}).packed();
    case 4:
      return t.permute({3, 2, 1, 0}).packed();
    case 5:
      return t.permute({4, 3, 2, 1, 0}).packed();
    case 6:
      return t.permute({5, 4, 3, 2, 1, 0}).packed();
    default:
      return t;
  }
}

Tensor load_npy(const ByteSource& source) {
  const std::string& where = source.name();
  LOWBIT_CHECK(source.size() >= 10 && source.read_string(0, 6) == kMagic, io, kOp, where,
               ": not an .npy file");
  const int version = source.read_le<uint8_t>(6);
  LOWBIT_CHECK(version >= 1 && version <= 3, io, kOp, where, ": version ", version, " is not supported");
  const uint64_t begin = version == 1 ? 10 : 12;
  const uint64_t length = version == 1 ? source.read_le<uint16_t>(8) : source.read_le<uint32_t>(8);
  LOWBIT_CHECK(length <= 1 << 20, io, kOp, where, ": header is too long (", length, " bytes)");
  const std::string text = source.read_string(begin, length);
  const Header h = HeaderParser(text, where).parse();
  const auto type = h.descr.size() == 3 ? numpy_type(h.descr.substr(1)) : std::nullopt;
  LOWBIT_CHECK(type && (h.descr[0] == '<' || h.descr[0] == '|'), io, kOp, where, ": type ",
               printable(h.descr), " is not supported");
  uint64_t bytes = 0;
  const std::vector<int64_t> dims(h.fortran ? std::vector<int64_t>(h.shape.rbegin(), h.shape.rend())
                                            : h.shape);
  const Shape shape = checked_shape(dims.data(), dims.size(), *type, where, bytes);
  LOWBIT_CHECK(bytes == source.size() - begin - length, io, kOp, where,
               ": truncated or with trailing bytes (", bytes, " bytes of data expected, ",
               source.size() - begin - length, " present)");
  const Tensor t = read_raw(*type, shape, source, begin + length, where);
  return h.fortran ? reversed(t) : t;
}

namespace {

Tensor known_to_numpy(const Tensor& t) {
  return (t.dtype() == DType::bf16 ? t.cast(DType::f32) : t).to(Device{}).packed();
}

/// Everything before the data of a version 1.0 file.
std::string header_of(const Tensor& data) {
  std::string text = dtype_size(data.dtype()) == 1 ? "{'descr': '|" : "{'descr': '<";
  for (const NumpyName& n : kTypes)
    if (n.type == raw_type(data.dtype())) text += n.name;
  text += "', 'fortran_order': False, 'shape': (";
  for (int64_t d : data.shape()) text += std::to_string(d) + ",";
  text += "), }";
  text.resize((10 + text.size() + 1 + 63) / 64 * 64 - 11, ' ');
  text += '\n';
  const auto length = uint16_t(text.size());
  std::string head(kMagic);
  head.append("\x01\0", 2).append(reinterpret_cast<const char*>(&length), sizeof length);
  return head + text;
}

}  // namespace

void save_npy(const std::string& path, const Tensor& t) {
  const Tensor data = known_to_numpy(t);
  AtomicFile out(path);
  out.write(header_of(data));
  out.write(data.view().data, data.bytes());
  out.commit();
}

void save_npz(const std::string& path, const TensorMap& tensors) {
  AtomicFile out(path);
  ZipWriter zip(out);
  for (const auto& [name, t] : tensors) {
    const Tensor data = known_to_numpy(t);
    std::string bytes = header_of(data);
    bytes.append(static_cast<const char*>(data.view().data), data.bytes());
    zip.add(name + ".npy", bytes);
  }
  zip.finish();
  out.commit();
}

TensorMap load_npz(const ByteSource& source) {
  const ZipReader zip(source);
  TensorMap r;
  for (const auto& [name, entry] : zip.entries()) {
    const std::string stem = name.ends_with(".npy") ? name.substr(0, name.size() - 4) : name;
    const ByteSource bytes =
        ByteSource::memory(zip.read(name), str_cat(source.name(), ": ", printable(name)));
    LOWBIT_CHECK(r.emplace(stem, load_npy(bytes)).second, io, kOp, source.name(),
                 ": array appears twice: ", printable(stem));
  }
  return r;
}

}  // namespace lowbit
