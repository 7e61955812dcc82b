#pragma once
// The arithmetic of gemm_digits.h, written once for both devices: how floats of a line become digits.
// Internal to the engine.

#include <cstdint>

#include "tensor/engine/gemm.h"
#include "tensor/hd/math.h"

namespace lowbit::detail {

inline constexpr int kMaxDigits = 4;  // of heavy lines; three, or two, of others
inline constexpr float kLargestFloat = 3.402823466e38f;
inline constexpr int32_t kInfinityBits = 0x7f800000;

/// A line whose largest value is more than 12 times its root mean square is heavy: v is 16 times larger.
inline constexpr float kHeavyScale = 16, kHeavyRatio = 12;

/// Order of Σ x²: number k goes to lane k mod 32 of a row, k mod 4 of a column; lanes are added in order.
inline constexpr int kRowLanes = 32, kColumnLanes = 4;

LOWBIT_HD int32_t magnitude_bits(float x) { return int32_t(float_bits(x) & 0x7fffffffu); }

/// The fixed-point scale of a line from the bits of its largest magnitude; 0 for a line of zeros.
LOWBIT_HD float fixed_point(int32_t top_bits, int digits) {
  const float top = bits_float(uint32_t(top_bits));
  const float largest = digits == 3 ? 8388606.f : 32766.f;
  return top > 0 ? math::min(largest / top, kLargestFloat) : 0.f;
}

/// q + digit_zero has unsigned bytes; what is above the third is the fourth digit, signed.
LOWBIT_HD int32_t digit_zero(int digits) { return digits == 2 ? 1 << 15 : 1 << 23; }

/// Digit d of q as an unsigned byte; signed ones are each less 128.
LOWBIT_HD uint8_t digit_of(int32_t q, int digits, int d, bool is_signed) {
  const int32_t u = q + digit_zero(digits);
  return uint8_t((u >> 8 * d) + ((d == 3) != is_signed ? 128 : 0));
}

/// A few values dominate the line, so that 24 bits under its largest one are too coarse for the others.
LOWBIT_HD bool is_heavy(int32_t top_bits, float squares, int64_t k) {
  const double top = double(bits_float(uint32_t(top_bits)));
  return top_bits < kInfinityBits &&
         top * top * double(k) > double(kHeavyRatio * kHeavyRatio) * double(squares);
}

/// v of a measured line and how many digits it needs. A function of the line alone.
struct LineScale {
  float v;
  int digits;
};
LOWBIT_HD LineScale line_scale(int32_t top_bits, float squares, int64_t k, int digits, bool heavy_allowed) {
  const float v = fixed_point(top_bits, digits);
  if (heavy_allowed && v < kLargestFloat / kHeavyScale && is_heavy(top_bits, squares, k))
    return {v * kHeavyScale, kMaxDigits};
  return {v, digits};
}

/// 1 / v; NaN when the line holds a NaN or an infinity, whose bits are larger than those of any number.
LOWBIT_HD double unit_of(int32_t top_bits, float v) {
  if (top_bits >= kInfinityBits) return __builtin_nan("");
  return v > 0 ? 1 / double(v) : 0;
}

/// Lanes of D; and whether D is a sum of the floats themselves, not of q.
inline constexpr int kOffsetLanes = 8;
LOWBIT_HD bool sums_floats(const GemmOperand& codes) {
  return codes.offset && (codes.offset_stride.k || codes.scale_stride.k);
}

}  // namespace lowbit::detail
