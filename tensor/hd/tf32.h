#pragma once
// tf32: an f32 with ten bits of mantissa, what tensor cores make of f32 operands.

#include "tensor/hd/half.h"

namespace lowbit {

/// Rounded half to even.
LOWBIT_HD float round_tf32(float x) {
  const uint32_t u = float_bits(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return x;  // NaN
  return bits_float((u + 0xfffu + ((u >> 13) & 1u)) & ~0x1fffu);
}

}  // namespace lowbit
