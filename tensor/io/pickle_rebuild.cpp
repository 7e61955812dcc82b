#include "tensor/io/pickle_rebuild.h"

#include <cstring>

#include "tensor/io/npy.h"

namespace lowbit {
namespace {

using Kind = PyValue::Kind;

struct TorchName {
  std::string_view storage, dtype;
  RawType type;
};
constexpr TorchName kTorchTypes[] = {
    {"torch FloatStorage", "torch float32", RawType::f32},
    {"torch DoubleStorage", "torch float64", RawType::f64},
    {"torch HalfStorage", "torch float16", RawType::f16},
    {"torch BFloat16Storage", "torch bfloat16", RawType::bf16},
    {"torch LongStorage", "torch int64", RawType::i64},
    {"torch IntStorage", "torch int32", RawType::i32},
    {"torch ShortStorage", "torch int16", RawType::i16},
    {"torch CharStorage", "torch int8", RawType::i8},
    {"torch ByteStorage", "torch uint8", RawType::u8},
    {"torch BoolStorage", "torch bool", RawType::b8},
    {"torch UntypedStorage", "torch uint8", RawType::u8},
    {"torch.storage UntypedStorage", "torch uint8", RawType::u8},
    {"", "torch uint16", RawType::u16},
    {"", "torch uint32", RawType::u32},
    {"", "torch uint64", RawType::u64},
    {"", "torch float8_e4m3fn", RawType::f8_e4m3},
    {"", "torch float8_e5m2", RawType::f8_e5m2},
};

bool is_numpy(const PyValue& f, std::string_view name) {  // NumPy 2 moved numpy.core to numpy._core
  for (std::string_view module : {"numpy.core.multiarray ", "numpy._core.multiarray "})
    if (f.text.size() == module.size() + name.size() && f.text.starts_with(module) && f.text.ends_with(name))
      return true;
  return false;
}

const PyValue* item(const PyValue& v, size_t i, Kind kind) {
  return v.items.size() > i && v.items[i]->is(kind) ? v.items[i] : nullptr;
}

/// Code points 0..255 of UTF-8 text → bytes.
bool utf8_to_latin1(const std::string& text, std::string& bytes) {
  bytes.clear();
  for (size_t i = 0; i < text.size(); ++i) {
    const auto c = uint8_t(text[i]);
    if (c < 0x80)
      bytes += char(c);
    else if ((c == 0xc2 || c == 0xc3) && i + 1 < text.size() && (uint8_t(text[i + 1]) & 0xc0) == 0x80)
      bytes += char(((c & 3) << 6) | (uint8_t(text[++i]) & 0x3f));
    else
      return false;
  }
  return true;
}

bool integers(const PyValue& v, std::vector<int64_t>& out) {
  if (!v.is(Kind::tuple) && !v.is(Kind::list)) return false;
  for (const PyValue* i : v.items) {
    if (!i->is(Kind::integer)) return false;
    out.push_back(i->integer);
  }
  return true;
}

}  // namespace

bool torch_type(std::string_view global, RawType& type) {
  for (const TorchName& t : kTorchTypes)
    if (global == t.dtype || (!t.storage.empty() && global == t.storage)) {
      type = t.type;
      return true;
    }
  return false;
}

void Rebuild::bad(const char* what) const { fail(ErrorKind::io, "pickle", where + ": " + what); }

void Rebuild::charge(uint64_t bytes) {
  check(bytes <= budget, "content expands too much");
  budget -= bytes;
}

PyValue* Rebuild::opaque(PyValue* cls, PyValue* args) {
  PyValue* v = tree.make(Kind::object);
  v->items = {cls, args};
  return v;
}

PyValue* Rebuild::sequence(Kind kind, const PyValue& from) {
  charge(from.items.size() * sizeof(PyValue*));
  PyValue* v = tree.make(kind);
  v->items = from.items;
  return v;
}

PyValue* Rebuild::reduce(PyValue* f, PyValue* args) {
  check(args->is(Kind::tuple), "arguments are not a tuple");
  if (!f->is(Kind::global)) return opaque(f, args);
  const PyValue* list = item(*args, 0, Kind::list);
  if (f->text == "collections OrderedDict" || f->text == "collections defaultdict") {
    PyValue* v = tree.make(Kind::dict);
    if (f->text == "collections OrderedDict" && list)  // list of pairs, as Python 2 wrote it
      for (const PyValue* pair : list->items) {
        check(pair->items.size() == 2, "OrderedDict from something that is not pairs");
        charge(2 * sizeof(PyValue*));
        v->items.insert(v->items.end(), pair->items.begin(), pair->items.end());
      }
    return v;
  }
  if (f->text == "torch Size" && item(*args, 0, Kind::tuple)) return sequence(Kind::tuple, *args->items[0]);
  if ((f->text == "__builtin__ set" || f->text == "builtins set") && list) return sequence(Kind::list, *list);
  if (f->text == "_codecs encode") return latin1(*args);
  if (f->text == "torch._utils _rebuild_tensor" || f->text == "torch._utils _rebuild_tensor_v2")
    return torch_tensor(*args, false);
  if (f->text == "torch._utils _rebuild_tensor_v3") return torch_tensor(*args, true);
  if (f->text == "torch._utils _rebuild_parameter" ||
      f->text == "torch._utils _rebuild_parameter_with_state") {
    check(!args->items.empty(), "parameter without data");
    return args->items[0];
  }
  if (f->text == "numpy dtype") return numpy_dtype(*args);
  if (is_numpy(*f, "scalar")) return numpy_scalar(*args);
  return opaque(f, args);  // numpy _reconstruct too: its BUILD brings the content
}

PyValue* Rebuild::latin1(const PyValue& args) {
  const PyValue* text = item(args, 0, Kind::string);
  const PyValue* codec = item(args, 1, Kind::string);
  check(text && codec && codec->text == "latin1", "unknown text encoding");
  charge(text->text.size());
  PyValue* v = tree.make(Kind::bytes);
  check(utf8_to_latin1(text->text, v->text), "text is not latin1");
  return v;
}

PyValue* Rebuild::persistent(const PyValue& id) {
  const PyValue* tag = item(id, 0, Kind::string);
  check(id.is(Kind::tuple) && tag && tag->text == "storage", "unknown persistent id");
  const PyValue* type = item(id, 1, Kind::global);
  const PyValue* key = item(id, 2, Kind::string);
  const PyValue* numel = item(id, 4, Kind::integer);
  RawType raw;
  check(type && key && numel && numel->integer >= 0 && torch_type(type->text, raw),
        "storage is not understood");
  charge(key->text.size());
  PyValue* v = tree.make(Kind::storage);
  v->text = key->text;
  v->integer = numel->integer;
  v->items = {id.items[1]};
  if (id.items.size() > 5 && !id.items[5]->is(Kind::none)) {  // legacy view of a storage: (key, offset, size)
    const PyValue* offset = item(*id.items[5], 1, Kind::integer);
    check(offset && offset->integer >= 0, "storage view is not understood");
    v->items.push_back(const_cast<PyValue*>(offset));
  }
  return v;
}

PyValue* Rebuild::torch_tensor(const PyValue& args, bool typed) {
  const PyValue* storage = item(args, 0, Kind::storage);
  const PyValue* offset = item(args, 1, Kind::integer);
  check(storage && offset && args.items.size() >= 4, "tensor is not understood");
  PyValue* v = tree.make(Kind::tensor);
  v->tensor = std::make_shared<TorchTensorRef>();
  TorchTensorRef& t = *v->tensor;
  t.storage = storage;
  t.offset = offset->integer;
  const PyValue* type = typed ? item(args, 6, Kind::global) : storage->items[0];
  check(type && torch_type(type->text, t.type), "tensor type is not understood");
  charge((args.items[2]->items.size() + args.items[3]->items.size()) * sizeof(int64_t));
  check(integers(*args.items[2], t.shape) && integers(*args.items[3], t.stride) &&
            t.shape.size() == t.stride.size(),
        "tensor shape is not understood");
  if (storage->items.size() > 1)
    check(!__builtin_add_overflow(t.offset, storage->items[1]->integer, &t.offset), "bad offset");
  return v;
}

PyValue* Rebuild::numpy_dtype(const PyValue& args) {
  const PyValue* name = item(args, 0, Kind::string);
  check(name, "numpy dtype is not understood");
  PyValue* v = tree.make(Kind::dtype);
  v->text.assign(1, '<').append(name->text, 0, 16);
  return v;
}

PyValue* Rebuild::numpy_scalar(const PyValue& args) {
  const PyValue* dtype = item(args, 0, Kind::dtype);
  const auto type = dtype ? numpy_type(dtype->text.substr(1)) : std::nullopt;
  std::string bytes;
  check(args.items.size() == 2, "numpy scalar is not understood");
  if (!type || dtype->text[0] == '>' || !array_bytes(*args.items[1], bytes))
    return opaque(args.items[0], args.items[1]);
  check(bytes.size() == raw_size(*type), "numpy scalar has the wrong size");
  const Tensor t = decode_raw(*type, Shape{}, bytes.data(), where);
  PyValue* v = tree.make(is_float(t.dtype())    ? Kind::real
                         : *type == RawType::b8 ? Kind::boolean
                                                : Kind::integer);
  if (v->is(Kind::real))
    v->real = t.cast(DType::f64).item<double>();
  else
    v->integer = t.cast(DType::i64).item<int64_t>();
  return v;
}

/// Raw content of an array: bytes, or the latin1 text that protocol 2 writes.
bool Rebuild::array_bytes(const PyValue& raw, std::string& bytes) {
  if (!raw.is(Kind::bytes) && !raw.is(Kind::string)) return false;
  charge(raw.text.size());
  if (raw.is(Kind::string)) return utf8_to_latin1(raw.text, bytes);
  bytes = raw.text;
  return true;
}

void Rebuild::build(PyValue& target, PyValue* state) {
  if (target.is(Kind::dtype)) {
    const PyValue* order = item(*state, 1, Kind::string);
    check(order && order->text.size() == 1, "numpy dtype is not understood");
    target.text[0] = order->text[0];
    return;
  }
  if (target.is(Kind::object)) {
    const bool array = target.items.size() == 2 && target.items[0]->is(Kind::global) &&
                       is_numpy(*target.items[0], "_reconstruct");
    if (array && state->is(Kind::tuple)) return build_array(target, *state);
    target.items.push_back(state);
  }
  // Attributes of a dict, list or tensor (such as OrderedDict's _metadata) are not needed.
}

void Rebuild::build_array(PyValue& target, const PyValue& state) {
  check(state.items.size() == 5 && state.items[2]->is(Kind::dtype) && state.items[3]->kind <= Kind::integer,
        "array is not understood");
  const std::string& dtype = state.items[2]->text;
  const auto type = numpy_type(dtype.substr(1));
  std::string bytes;
  if (!type || dtype[0] == '>' ||
      !array_bytes(*state.items[4], bytes)) {  // objects, records, big endian: opaque
    target.items.push_back(const_cast<PyValue*>(&state));
    return;
  }
  std::vector<int64_t> dims;
  check(integers(*state.items[1], dims), "array shape is not understood");
  const bool fortran = state.items[3]->integer != 0;
  if (fortran) dims = {dims.rbegin(), dims.rend()};
  uint64_t size = 0;
  const Shape shape = checked_shape(dims.data(), dims.size(), *type, where, size);
  check(size == bytes.size(), "array data does not fill its shape");
  charge(4 * size);
  Tensor t = decode_raw(*type, shape, bytes.data(), where);
  target.kind = Kind::array;
  target.items.clear();
  target.array = std::make_shared<Tensor>(fortran ? reversed(t) : t);
}

std::string describe(const PyValue& v, size_t limit) {
  switch (v.kind) {
    case Kind::none:
      return "None";
    case Kind::boolean:
      return v.integer ? "True" : "False";
    case Kind::integer:
      return str_cat(v.integer);
    case Kind::bigint:
      return str_cat("integer of ", v.text.size(), " bytes");
    case Kind::real:
      return str_cat(v.real);
    case Kind::string:
      return str_cat('"', printable(v.text, limit), '"');
    case Kind::bytes:
      return str_cat(v.text.size(), " bytes");
    case Kind::list:
      return str_cat("list of ", v.items.size());
    case Kind::tuple:
      return str_cat("tuple of ", v.items.size());
    case Kind::dict:
      return str_cat("dict of ", v.items.size() / 2);
    case Kind::global:
    case Kind::dtype:
      return printable(v.text, limit);
    case Kind::object:
      return str_cat("object ", printable(v.items[0]->text, limit));
    case Kind::array:
      return str_cat("array ", v.array->shape().str(), " ", dtype_name(v.array->dtype()));
    case Kind::storage:
      return str_cat("storage ", printable(v.text, limit));
    default:
      break;
  }
  std::ostringstream s;
  s << "tensor [";
  for (size_t i = 0; i < v.tensor->shape.size() && i < 8; ++i) s << (i ? ", " : "") << v.tensor->shape[i];
  s << "]";
  return s.str();
}

}  // namespace lowbit
