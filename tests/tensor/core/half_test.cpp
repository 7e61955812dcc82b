#include "tensor/hd/half.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace lowbit {
namespace {

/// The value of a bit pattern with the given exponent and mantissa widths, from the definition.
double decode(uint32_t bits, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1, all_ones = (1 << exponent_bits) - 1;
  const int e = int(bits >> mantissa_bits) & all_ones;
  const double m = double(bits & ((1u << mantissa_bits) - 1)), unit = std::ldexp(1.0, -mantissa_bits);
  const double sign = bits >> (exponent_bits + mantissa_bits) & 1 ? -1 : 1;
  if (e == all_ones) return m != 0 ? NAN : sign * INFINITY;
  return sign * (e == 0 ? std::ldexp(m * unit, 1 - bias) : std::ldexp(1 + m * unit, e - bias));
}

/// Every pattern widens to its value, narrows back to itself, and every midpoint of neighbours rounds to the
/// even one.
template <class H>
void check_all(int exponent_bits, int mantissa_bits, bool denormals) {
  const uint32_t infinity = uint32_t((1 << exponent_bits) - 1) << mantissa_bits;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    H h;
    h.bits = uint16_t(bits);
    const double want = decode(bits, exponent_bits, mantissa_bits);
    const float f = float(h);
    if (std::isnan(want)) {
      ASSERT_NE(f, f) << bits;
      const H back{f};
      ASSERT_GT(uint32_t(back.bits & 0x7fff), infinity) << bits;
      continue;
    }
    if (!denormals && std::fabs(want) < 0x1p-126) continue;  // those of bf16 are denormal floats
    ASSERT_EQ(double(f), want) << bits;
    ASSERT_EQ(H(f).bits, bits);
    const uint32_t magnitude = bits & 0x7fff;
    if (magnitude >= infinity) continue;
    const double next = magnitude + 1 == infinity
                            ? std::ldexp(1.0, 1 << (exponent_bits - 1))
                            : std::fabs(decode(magnitude + 1, exponent_bits, mantissa_bits));
    const float middle = float(std::copysign((std::fabs(want) + next) / 2, want));  // exact: one bit more
    ASSERT_EQ(uint32_t(H(middle).bits), (bits & 1) ? bits + 1 : bits) << bits;
    const float above = std::nextafter(middle, std::copysign(std::numeric_limits<float>::infinity(), middle));
    ASSERT_EQ(uint32_t(H(above).bits), bits + 1) << bits;
    ASSERT_EQ(uint32_t(H(std::nextafter(middle, 0.0f)).bits), bits) << bits;
  }
}

TEST(Half, Bf16ConvertsExactlyForAllValues) { check_all<bf16>(8, 7, false); }
TEST(Half, F16ConvertsExactlyForAllValues) { check_all<f16>(5, 10, true); }

TEST(Half, OverflowAndUnderflow) {
  EXPECT_EQ(f16(65520.0f).bits, 0x7c00);  // halfway to the next power rounds to infinity
  EXPECT_EQ(f16(65519.0f).bits, 0x7bff);
  EXPECT_EQ(f16(-1e10f).bits, 0xfc00);
  EXPECT_EQ(f16(0x1p-25f).bits, 0);  // ties to even: zero
  EXPECT_EQ(f16(0x1.000002p-25f).bits, 1);
  EXPECT_EQ(bf16(3.4e38f).bits, 0x7f80);
  EXPECT_EQ(bf16(-0.0f).bits, 0x8000);
}

}  // namespace
}  // namespace lowbit
