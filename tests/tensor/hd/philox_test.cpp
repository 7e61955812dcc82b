#include "tensor/hd/philox.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tensor/core/generator.h"

namespace lowbit {
namespace {

void expect_block(PhiloxBlock b, std::vector<uint32_t> want) {
  EXPECT_EQ(std::vector<uint32_t>({b.w0, b.w1, b.w2, b.w3}), want);
}

TEST(Philox, MatchesTheKnownAnswersOfRandom123) {
  expect_block(philox4x32_10({0, 0, 0, 0}, 0, 0), {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  const uint32_t f = 0xffffffff;
  expect_block(philox4x32_10({f, f, f, f}, f, f), {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  expect_block(philox4x32_10({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0xa4093822, 0x299f31d0),
               {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST(Philox, ElementUsesItsBlockAndWord) {
  const uint64_t extra = 5;
  for (RngKey k :
       {RngKey{0x123456789abcdefull, 0xfedcba987ull, 0xfffffffeull, nullptr}, RngKey{1, 2, 3, &extra}}) {
    for (uint64_t i = 0; i < 40; ++i) {
      const uint64_t o = k.offset + i / 4 + (k.device_offset ? extra : 0);
      const PhiloxBlock b =
          philox4x32_10({uint32_t(o), uint32_t(o >> 32), uint32_t(k.stream), uint32_t(k.stream >> 32)},
                        uint32_t(k.seed), uint32_t(k.seed >> 32));
      const uint32_t words[4] = {b.w0, b.w1, b.w2, b.w3};
      EXPECT_EQ(philox_u32(k, i), words[i % 4]) << i;
    }
  }
}

TEST(Philox, ReservedKeysNeverOverlap) {
  Generator g(7);
  const RngKey a = g.reserve(5), b = g.reserve(1), c = g.reserve(4), d = g.reserve(0);
  EXPECT_EQ(a.offset, 0u);
  EXPECT_EQ(b.offset, 2u);
  EXPECT_EQ(c.offset, 3u);
  EXPECT_EQ(d.offset, 4u);
  EXPECT_EQ(g.state(), 4u);
}

TEST(Philox, ConversionsHitTheirBounds) {
  EXPECT_EQ(uniform_from_bits(0), 0.0f);
  EXPECT_EQ(uniform_from_bits(~0u), 1.0f - 0x1p-24f);
  EXPECT_EQ(uniform_open_from_bits(0), 0x1p-24f);
  EXPECT_EQ(uniform_open_from_bits(~0u), 1.0f);
  EXPECT_EQ(below_from_bits(~0u, 10), 9u);
  EXPECT_EQ(below_from_bits(0, 10), 0u);
  EXPECT_EQ(below_from_bits(~0u, uint64_t(1) << 32), ~0u);
}

TEST(Philox, UniformAndIntegersAreEvenlySpread) {
  const RngKey k{42, 1, 0, nullptr};
  const int n = 100000;
  double sum = 0, square = 0;
  std::vector<int> count(10);
  for (int i = 0; i < n; ++i) {
    const double u = philox_uniform(k, uint64_t(i));
    sum += u, square += u * u;
    ++count[philox_below(k, uint64_t(i), 10)];
  }
  EXPECT_NEAR(sum / n, 0.5, 5 * 0.2887 / std::sqrt(n));
  EXPECT_NEAR(square / n, 1.0 / 3, 5 * 0.2981 / std::sqrt(n));
  for (int c : count) EXPECT_NEAR(c, n / 10, 5 * std::sqrt(n * 0.09));
}

TEST(Philox, NormalHasTheMomentsAndTailsOfANormal) {
  const RngKey k{3, 9, 0, nullptr};
  const int n = 200000;
  double m1 = 0, m2 = 0, m3 = 0, m4 = 0, product = 0, before = 0;
  int beyond_two = 0;
  for (int i = 0; i < n; ++i) {
    const double x = philox_normal(k, uint64_t(i));
    ASSERT_TRUE(std::isfinite(x));
    m1 += x, m2 += x * x, m3 += x * x * x, m4 += x * x * x * x, product += x * before;
    before = x;
    beyond_two += std::fabs(x) > 2;
  }
  const double e = 5 / std::sqrt(n);  // five standard errors of a unit variance
  EXPECT_NEAR(m1 / n, 0, e);
  EXPECT_NEAR(m2 / n, 1, e * std::sqrt(2.0));
  EXPECT_NEAR(m3 / n, 0, e * std::sqrt(15.0));
  EXPECT_NEAR(m4 / n, 3, e * std::sqrt(96.0));
  EXPECT_NEAR(product / n, 0, e);
  EXPECT_NEAR(beyond_two / double(n), 0.0455, e * std::sqrt(0.0455));
  EXPECT_TRUE(std::isfinite(normal_from_bits(0, 0, false)));
  EXPECT_EQ(normal_from_bits(~0u, 123, true), 0.0f);
}

}  // namespace
}  // namespace lowbit
