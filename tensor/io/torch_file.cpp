#include "tensor/io/torch_file.h"

#include <algorithm>
#include <cstring>

namespace lowbit {
namespace {

using Kind = PyValue::Kind;
constexpr const char* kOp = "torch file";
constexpr int kMaxDepth = 64;
constexpr std::string_view kLegacyMagic("\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", 10);
constexpr std::string_view kLegacyStart("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", 14);

RawType storage_type(const PyValue& storage) {
  RawType t = RawType::u8;
  LOWBIT_ASSERT(torch_type(storage.items[0]->text, t));
  return t;
}

uint64_t storage_size(const PyValue& storage, const std::string& where) {
  uint64_t bytes;
  LOWBIT_CHECK(checked_mul(uint64_t(storage.integer), raw_size(storage_type(storage)), bytes), io, kOp, where,
               ": storage is too large");
  return bytes;
}

/// Bytes that the tensor takes; checks that every element lies inside its storage.
uint64_t check_ref(const TorchTensorRef& t, const std::string& where) {
  uint64_t bytes = 0;
  checked_shape(t.shape.data(), t.shape.size(), t.type, where, bytes);
  if (bytes == 0) return 0;
  int64_t last = t.offset;
  bool ok = t.offset >= 0;
  for (size_t i = 0; i < t.shape.size(); ++i) {
    int64_t reach = 0;
    ok = ok && t.stride[i] >= 0 && !__builtin_mul_overflow(t.shape[i] - 1, t.stride[i], &reach) &&
         !__builtin_add_overflow(last, reach, &last);
  }
  uint64_t end = 0;
  ok = ok && checked_mul(uint64_t(last) + 1, raw_size(t.type), end) && end <= storage_size(*t.storage, where);
  LOWBIT_CHECK(ok, io, kOp, where, ": tensor reaches outside its storage");
  return bytes;
}

/// Copies the elements of a strided window in row-major order.
std::string gather(const std::string& storage, const TorchTensorRef& t, uint64_t bytes) {
  const uint64_t size = raw_size(t.type);
  std::string out(bytes, '\0');
  std::vector<int64_t> index(t.shape.size());
  int64_t at = t.offset;
  for (uint64_t i = 0; i < bytes; i += size) {
    std::memcpy(out.data() + i, storage.data() + uint64_t(at) * size, size);
    for (size_t d = t.shape.size(); d-- > 0;) {
      at += t.stride[d];
      if (++index[d] < t.shape[d]) break;
      at -= t.stride[d] * t.shape[d];
      index[d] = 0;
    }
  }
  return out;
}

bool is_contiguous(const TorchTensorRef& t) {
  int64_t step = 1;
  for (size_t d = t.shape.size(); d-- > 0;) {
    if (t.shape[d] != 1 && t.stride[d] != step) return false;
    step *= t.shape[d];
  }
  return true;
}

/// Walks a tree that may share branches, contain itself or hold huge keys: everything is bounded.
struct Collector {
  const std::string& where;
  uint64_t memory_left;  ///< for the tensors found
  uint64_t steps_left, text_left;
  std::vector<std::pair<std::string, const PyValue*>> found;

  void spend(uint64_t& left, uint64_t n, const char* what) {
    LOWBIT_CHECK(n <= left, io, kOp, where, ": ", what);
    left -= n;
  }
  void walk(const PyValue& v, const std::string& path, int depth) {
    LOWBIT_CHECK(depth < kMaxDepth, io, kOp, where, ": nested too deeply");
    spend(steps_left, 1, "too many values");
    if (v.is(Kind::tensor) || v.is(Kind::array)) {
      spend(text_left, path.size(), "names are too long");
      spend(memory_left, v.is(Kind::array) ? v.array->bytes() : check_ref(*v.tensor, where),
            "tensors expand too much");
      found.emplace_back(path, &v);
    }
    const std::string prefix = path.empty() ? path : path + ".";
    if (v.is(Kind::list) || v.is(Kind::tuple))
      for (size_t i = 0; i < v.items.size(); ++i) walk(*v.items[i], prefix + std::to_string(i), depth + 1);
    if (!v.is(Kind::dict)) return;
    for (size_t i = 0; i + 1 < v.items.size(); i += 2) {
      const PyValue& key = *v.items[i];
      LOWBIT_CHECK(key.text.size() <= 4096, io, kOp, where, ": name is too long");
      walk(*v.items[i + 1], prefix + (key.is(Kind::integer) ? std::to_string(key.integer) : key.text),
           depth + 1);
    }
  }
};

}  // namespace

bool TorchFile::recognises(const ByteSource& source) {
  if (source.size() >= kLegacyStart.size() && source.read_string(0, kLegacyStart.size()) == kLegacyStart)
    return true;
  if (!ZipReader::recognises(source)) return false;
  const ZipReader zip(source);
  return std::any_of(zip.entries().begin(), zip.entries().end(),
                     [](const auto& e) { return e.first == "data.pkl" || e.first.ends_with("/data.pkl"); });
}

TorchFile::TorchFile(ByteSource source) : source_(std::move(source)) {
  if (ZipReader::recognises(source_))
    open_zip();
  else
    open_legacy();
  check_refs();
}

void TorchFile::open_zip() {
  zip_.emplace(source_);
  const std::string* pickle = nullptr;
  for (const auto& [name, entry] : zip_->entries())
    if ((name == "data.pkl" || name.ends_with("/data.pkl")) && (!pickle || name.size() < pickle->size()))
      pickle = &name;
  LOWBIT_CHECK(pickle, io, kOp, source_.name(), ": zip archive without data.pkl");
  prefix_ = pickle->substr(0, pickle->size() - std::strlen("data.pkl"));
  if (zip_->has(prefix_ + "byteorder"))
    LOWBIT_CHECK(zip_->read(prefix_ + "byteorder") == "little", io, kOp, source_.name(),
                 ": byte order is not little");
  const std::string bytes = zip_->read(*pickle);
  const Unpickled u = unpickle(bytes, tree_, source_.name());
  LOWBIT_CHECK(u.consumed == bytes.size(), io, kOp, source_.name(), ": data.pkl has trailing bytes");
  root_ = u.root;
}

/// Pickles of magic number, protocol, system info, object and storage keys; then per key a count and the raw
/// data.
void TorchFile::open_legacy() {
  const std::string& where = source_.name();
  LOWBIT_CHECK(recognises(source_), io, kOp, where, ": not a file of torch.save");
  const std::string bytes = source_.read_string(0, source_.size());
  uint64_t at = 0;
  auto next = [&] {
    const Unpickled u = unpickle(std::string_view(bytes).substr(at), tree_, where);
    at += u.consumed;
    return u.root;
  };
  const PyValue* magic = next();
  const PyValue* protocol = next();
  LOWBIT_CHECK(magic->is(Kind::bigint) && magic->text == kLegacyMagic && protocol->is(Kind::integer) &&
                   protocol->integer == 1001,
               io, kOp, where, ": unknown legacy version");
  const PyValue* little = next()->find("little_endian");
  LOWBIT_CHECK(little && little->integer == 1, io, kOp, where, ": byte order is not little");
  const size_t first = tree_.size();
  root_ = next();
  std::map<std::string, uint64_t> element;
  for (size_t i = first; i < tree_.size(); ++i)
    if (const PyValue& v = tree_.at(i); v.is(Kind::storage)) element[v.text] = raw_size(storage_type(v));
  const PyValue* keys = next();
  LOWBIT_CHECK(keys->is(Kind::list), io, kOp, where, ": storage keys are missing");
  for (const PyValue* key : keys->items) {
    const auto it = key->is(Kind::string) ? element.find(key->text) : element.end();
    LOWBIT_CHECK(it != element.end(), io, kOp, where, ": storage of unknown type");
    const auto numel = source_.read_le<uint64_t>(at);
    uint64_t size = 0;
    LOWBIT_CHECK(checked_mul(numel, it->second, size) && size <= bytes.size() - at - 8, io, kOp, where,
                 ": storages are truncated");
    LOWBIT_CHECK(storages_.emplace(key->text, Span{at + 8, size}).second, io, kOp, where,
                 ": storage appears twice");
    at += 8 + size;
  }
  LOWBIT_CHECK(at == bytes.size(), io, kOp, where, ": trailing bytes");
}

/// Every tensor must fit its storage and every storage must be there.
void TorchFile::check_refs() const {
  const std::string& where = source_.name();
  for (size_t i = 0; i < tree_.size(); ++i) {
    const PyValue& v = tree_.at(i);
    if (v.is(Kind::tensor)) check_ref(*v.tensor, where);
    if (!v.is(Kind::storage)) continue;
    uint64_t present = 0;
    if (zip_) {
      const auto it = zip_->entries().find(prefix_ + "data/" + v.text);
      LOWBIT_CHECK(it != zip_->entries().end(), io, kOp, where, ": storage ", printable(v.text),
                   " is missing");
      present = it->second.size;
    } else {
      const auto it = storages_.find(v.text);
      LOWBIT_CHECK(it != storages_.end(), io, kOp, where, ": storage ", printable(v.text), " is missing");
      present = it->second.bytes;
    }
    LOWBIT_CHECK(storage_size(v, where) <= present, io, kOp, where, ": storage ", printable(v.text),
                 " is shorter than declared");
  }
}

const std::string& TorchFile::storage_bytes(const PyValue& storage) const {
  if (!has_cached_ || cached_key_ != storage.text) {
    if (zip_) {
      cached_ = zip_->read(prefix_ + "data/" + storage.text);
    } else {
      const Span& s = storages_.at(storage.text);
      cached_ = source_.read_string(s.offset, s.bytes);
    }
    cached_key_ = storage.text;
    has_cached_ = true;
  }
  return cached_;
}

Tensor TorchFile::tensor(const PyValue& v) const {
  if (v.is(Kind::array)) return v.array->clone();
  LOWBIT_CHECK(v.is(Kind::tensor), io, kOp, source_.name(), ": not a tensor: ", describe(v));
  const TorchTensorRef& t = *v.tensor;
  uint64_t bytes = 0;
  const Shape shape = checked_shape(t.shape.data(), t.shape.size(), t.type, source_.name(), bytes);
  if (bytes == 0) return Tensor::empty(shape, memory_type(t.type));
  const std::string& storage = storage_bytes(*t.storage);
  if (is_contiguous(t))
    return decode_raw(t.type, shape, storage.data() + uint64_t(t.offset) * raw_size(t.type), source_.name());
  return decode_raw(t.type, shape, gather(storage, t, bytes).data(), source_.name());
}

std::vector<std::pair<std::string, const PyValue*>> TorchFile::tensors(const PyValue& v) const {
  Collector c{source_.name(), 16 * source_.size() + (uint64_t(64) << 20), 1'000'000, uint64_t(256) << 20, {}};
  c.walk(v, "", 0);
  return std::move(c.found);
}

TensorMap TorchFile::load_all(const PyValue& v) const {
  TensorMap r;
  for (const auto& [path, value] : tensors(v)) r[path] = tensor(*value);
  return r;
}

namespace {

std::string_view storage_class(DType t) {
  static constexpr std::string_view names[] = {"FloatStorage", "DoubleStorage", "BFloat16Storage",
                                               "HalfStorage",  "CharStorage",   "ByteStorage",
                                               "IntStorage",   "LongStorage",   "BoolStorage"};
  return names[int(t)];
}

void put_text(std::string& p, const std::string& text) {
  const auto n = uint32_t(text.size());
  p += 'X';
  p.append(reinterpret_cast<const char*>(&n), sizeof n);
  p += text;
}
void put_int(std::string& p, int64_t v) {
  p += "\x8a\x08";
  p.append(reinterpret_cast<const char*>(&v), sizeof v);
}
void put_ints(std::string& p, const std::vector<int64_t>& v) {
  p += '(';
  for (int64_t i : v) put_int(p, i);
  p += 't';
}

/// torch._utils._rebuild_tensor_v2(('storage', class, key, 'cpu', numel), 0, shape, stride, False,
/// OrderedDict())
void put_tensor(std::string& p, const Tensor& t, const std::string& key) {
  p += "ctorch._utils\n_rebuild_tensor_v2\n((";
  put_text(p, "storage");
  p += "ctorch\n" + std::string(storage_class(t.dtype())) + "\n";
  put_text(p, key);
  put_text(p, "cpu");
  put_int(p, t.numel());
  p += "tQ";
  put_int(p, 0);
  std::vector<int64_t> shape(t.shape().begin(), t.shape().end()), stride(shape.size(), 1);
  for (size_t d = shape.size(); d-- > 1;) stride[d - 1] = stride[d] * std::max<int64_t>(shape[d], 1);
  put_ints(p, shape);
  put_ints(p, stride);
  p += "\x89"
       "ccollections\nOrderedDict\n)RtR";
}

/// Bytes as the text "latin1" would decode to them, which is how protocol 2 carries them.
std::string as_latin1(const Tensor& t) {
  const auto* bytes = static_cast<const uint8_t*>(t.view().data);
  std::string text;
  for (size_t i = 0; i < t.bytes(); ++i) {
    if (bytes[i] >= 0x80) text += char(0xC0 | bytes[i] >> 6);
    text += char(bytes[i] < 0x80 ? bytes[i] : 0x80 | (bytes[i] & 0x3F));
  }
  return text;
}

/// numpy.core.multiarray._reconstruct(ndarray, (0,), b'b') with the state (1, shape, dtype, False, bytes)
void put_array(std::string& p, const Tensor& t) {
  const char* type = t.dtype() == DType::f32   ? "f4"
                     : t.dtype() == DType::f16 ? "f2"
                     : t.dtype() == DType::i64 ? "i8"
                     : t.dtype() == DType::b8  ? "b1"
                                               : nullptr;
  LOWBIT_CHECK(type, dtype, "torch", "arrays are written of f32, f16, i64 and b8 (got ", t.str(), ")");
  const auto bytes = [&](const std::string& text) {
    p += "c_codecs\nencode\n";
    put_text(p, text), put_text(p, "latin1");
    p += "\x86R";
  };
  p += "cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n";
  put_ints(p, {0});
  bytes("b");
  p += "\x87R(";
  put_int(p, 1);
  put_ints(p, {t.shape().begin(), t.shape().end()});
  p += "cnumpy\ndtype\n";
  put_text(p, type);
  p += "\x89\x88\x87R(";
  put_int(p, 3);
  put_text(p, t.dtype() == DType::b8 ? "|" : "<");
  p += "NNN";
  put_int(p, -1), put_int(p, -1), put_int(p, 0);
  p += "tb\x89";
  bytes(as_latin1(t));
  p += "tb";
}

/// The pickle and, for tensors, its storages.
void write_zip(const std::string& path, const std::string& pickle, const std::vector<Tensor>& storages) {
  AtomicFile out(path);
  ZipWriter zip(out);
  zip.add("archive/data.pkl", pickle);
  zip.add("archive/byteorder", "little");
  for (size_t i = 0; i < storages.size(); ++i)
    zip.add("archive/data/" + std::to_string(i), storages[i].view().data, storages[i].bytes());
  zip.add("archive/version", "3\n");
  zip.finish();
  out.commit();
}

}  // namespace

void save_torch_arrays(const std::string& path, const std::vector<Tensor>& arrays) {
  std::string pickle = "\x80\x02](";
  for (const Tensor& t : arrays) put_array(pickle, t.to(Device{}).packed());
  write_zip(path, pickle + "e.", {});
}

void save_torch(const std::string& path, const TensorMap& tensors) {
  std::string pickle = "\x80\x02}(";
  std::vector<Tensor> storages;
  for (const auto& [name, t] : tensors) {
    put_text(pickle, name);
    put_tensor(pickle, t, std::to_string(storages.size()));
    storages.push_back(t.to(Device{}).packed());
  }
  write_zip(path, pickle + "u.", storages);
}

}  // namespace lowbit
