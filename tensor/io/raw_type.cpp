#include "tensor/io/raw_type.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace lowbit {
namespace {

struct TypeInfo {
  uint64_t size;
  DType memory;
};
constexpr TypeInfo kInfo[] = {{8, DType::f64}, {4, DType::f32}, {2, DType::f16}, {2, DType::bf16},
                              {8, DType::i64}, {4, DType::i32}, {2, DType::i32}, {1, DType::i8},
                              {1, DType::u8},  {1, DType::b8},  {2, DType::i32}, {4, DType::i64},
                              {8, DType::i64}, {1, DType::f32}, {1, DType::f32}};

bool kept(RawType t) { return raw_size(t) == dtype_size(memory_type(t)); }

float f8_to_float(uint8_t b, bool e4m3) {
  const int mantissa_bits = e4m3 ? 3 : 2, bias = e4m3 ? 7 : 15;
  const int m = b & ((1 << mantissa_bits) - 1), e = (b & 0x7f) >> mantissa_bits;
  float v;
  if (e4m3 && (b & 0x7f) == 0x7f)
    v = std::nanf("");
  else if (!e4m3 && e == 31)
    v = m ? std::nanf("") : INFINITY;
  else
    v = std::ldexp(float(m + (e ? 1 << mantissa_bits : 0)), (e ? e : 1) - bias - mantissa_bits);
  return b & 0x80 ? -v : v;
}

template <class From, class To>
void widen(const char* src, To* dst, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    From v;
    std::memcpy(&v, src + size_t(i) * sizeof v, sizeof v);
    dst[i] = To(v);
  }
}

void widen_into(RawType type, const char* src, Tensor& t) {
  const int64_t n = t.numel();
  switch (type) {
    case RawType::i16:
      return widen<int16_t>(src, t.data<int32_t>(), n);
    case RawType::u16:
      return widen<uint16_t>(src, t.data<int32_t>(), n);
    case RawType::u32:
      return widen<uint32_t>(src, t.data<int64_t>(), n);
    default:
      break;
  }
  float* dst = t.data<float>();
  for (int64_t i = 0; i < n; ++i) dst[i] = f8_to_float(uint8_t(src[i]), type == RawType::f8_e4m3);
}

/// Values that the type in memory must not hold.
void check_values(RawType type, Tensor& t, const std::string& where) {
  if (type == RawType::b8) {
    auto* b = static_cast<uint8_t*>(t.mutable_view().data);
    for (int64_t i = 0; i < t.numel(); ++i) b[i] = b[i] != 0;
  } else if (type == RawType::u64) {
    const int64_t* v = t.data<int64_t>();
    LOWBIT_CHECK(std::all_of(v, v + t.numel(), [](int64_t x) { return x >= 0; }), io, "read", where,
                 ": unsigned value above 2^63-1");
  }
}

}  // namespace

uint64_t raw_size(RawType t) { return kInfo[int(t)].size; }
DType memory_type(RawType t) { return kInfo[int(t)].memory; }

RawType raw_type(DType t) {
  for (int i = 0;; ++i)
    if (kInfo[i].memory == t) return RawType(i);  // the exact counterpart is the first of its memory type
}

Shape checked_shape(const int64_t* dims, size_t n, RawType t, const std::string& where, uint64_t& bytes) {
  LOWBIT_CHECK(n <= size_t(kMaxDims), io, "read", where, ": at most ", kMaxDims,
               " dimensions are supported (got ", n, ")");
  Shape s;
  uint64_t all = raw_size(t), positive = all;  // the product without zeros must fit too, so that strides do
  for (size_t i = 0; i < n; ++i) {
    LOWBIT_CHECK(dims[i] >= 0 && checked_mul(all, uint64_t(dims[i]), all) &&
                     checked_mul(positive, uint64_t(std::max<int64_t>(dims[i], 1)), positive) &&
                     positive < uint64_t(1) << 62,
                 io, "read", where, ": extents are negative or too large");
    s.append(dims[i]);
  }
  bytes = all;
  return s;
}

Tensor decode_raw(RawType t, const Shape& shape, const char* bytes, const std::string& where) {
  Tensor r = Tensor::empty(shape, memory_type(t));
  if (r.numel() == 0) return r;
  if (kept(t))
    std::memcpy(r.mutable_view().data, bytes, r.bytes());
  else
    widen_into(t, bytes, r);
  check_values(t, r, where);
  return r;
}

Tensor read_raw(RawType t, const Shape& shape, const ByteSource& source, uint64_t offset,
                const std::string& where) {
  if (!kept(t))
    return decode_raw(t, shape, source.read_string(offset, uint64_t(shape.numel()) * raw_size(t)).data(),
                      where);
  Tensor r = Tensor::empty(shape, memory_type(t));
  if (r.numel() == 0) return r;
  source.read(offset, r.mutable_view().data, r.bytes());
  check_values(t, r, where);
  return r;
}

}  // namespace lowbit
