#pragma once
// Storage types bf16 and f16: no arithmetic, only exact widening and round-half-even narrowing.

#include <cstdint>

#include "tensor/hd/macros.h"

namespace lowbit {

LOWBIT_HD uint32_t float_bits(float x) {
  union {
    float f;
    uint32_t u;
  } v{x};
  return v.u;
}
LOWBIT_HD float bits_float(uint32_t u) {
  union {
    uint32_t u;
    float f;
  } v{u};
  return v.f;
}

struct bf16 {
  uint16_t bits;
  bf16() = default;
  LOWBIT_HD explicit bf16(float x) {
    uint32_t u = float_bits(x);
    if ((u & 0x7fffffffu) > 0x7f800000u)
      bits = uint16_t((u >> 16) | 0x40u);  // NaN stays NaN
    else
      bits = uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
  LOWBIT_HD operator float() const { return bits_float(uint32_t(bits) << 16); }
};

struct f16 {
  uint16_t bits;
  f16() = default;
  LOWBIT_HD explicit f16(float x) {
    const uint32_t u = float_bits(x), sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
    if (a > 0x7f800000u) {
      bits = uint16_t(sign | 0x7e00u);
      return;
    }
    if (a >= 0x477ff000u) {
      bits = uint16_t(sign | 0x7c00u);
      return;
    }                       // rounds to infinity
    if (a < 0x38800000u) {  // subnormal half or zero
      const uint32_t shift = 126u - (a >> 23), m = (a & 0x7fffffu) | 0x800000u;
      if (shift > 24u) {
        bits = uint16_t(sign);
        return;
      }
      const uint32_t half = 1u << (shift - 1u), rest = m & ((1u << shift) - 1u);
      uint32_t r = m >> shift;
      if (rest > half || (rest == half && (r & 1u))) ++r;
      bits = uint16_t(sign | r);
      return;
    }
    bits = uint16_t(sign | ((a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13));
  }
  LOWBIT_HD operator float() const {
    const uint32_t sign = uint32_t(bits & 0x8000u) << 16, e = (bits >> 10) & 31u, m = bits & 0x3ffu;
    if (e == 31u) return bits_float(sign | 0x7f800000u | (m << 13));
    if (e == 0u) {
      const float v = float(m) * (1.0f / 16777216.0f);  // m · 2^-24, exact
      return sign ? -v : v;
    }
    return bits_float(sign | ((e + 112u) << 23) | (m << 13));
  }
};

/// The type in which elements of type T are computed with.
template <class T>
struct ComputeType {
  using type = T;
};
template <>
struct ComputeType<bf16> {
  using type = float;
};
template <>
struct ComputeType<f16> {
  using type = float;
};
template <class T>
using compute_t = typename ComputeType<T>::type;

}  // namespace lowbit
