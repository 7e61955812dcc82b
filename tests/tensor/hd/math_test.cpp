#include "tensor/hd/math.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tensor/core/thread_pool.h"

namespace lowbit {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr double kPi = 3.14159265358979323846;

/// Distance of `got` from the exact value in units of the last place of the exact value; denormals count as
/// zero.
double ulps(float got, double want) {
  if (std::isnan(want)) return std::isnan(got) ? 0 : 1e9;
  if (std::isinf(float(want))) return got == float(want) ? 0 : 1e9;
  if (std::fabs(want) < 0x1p-126) return std::fabs(got) <= 0x1p-126f ? 0 : 1e9;
  int e;
  std::frexp(want, &e);
  return std::fabs(double(got) - want) / std::ldexp(1.0, e - 24);
}

/// Largest error over every 1021st float bit pattern, which meets all exponents, both signs and NaNs.
template <class F, class G>
void expect_ulps(F f, G reference, double bound, float lo = -kInf, float hi = kInf) {
  enable_flush_to_zero();
  double worst = 0;
  float at = 0;
  for (uint64_t bits = 0; bits < (1ull << 32); bits += 1021) {
    const float x = bits_float(uint32_t(bits));
    if (x < lo || x > hi || (std::isnan(x) && lo != -kInf)) continue;
    const double u = ulps(f(x), reference(double(x)));
    if (u > worst) worst = u, at = x;
  }
  EXPECT_LE(worst, bound) << "at x = " << at << ", got " << f(at) << ", exact " << reference(double(at));
}

#define EXPECT_ULPS(name, bound, ...)                                                        \
  expect_ulps([](float x) { return math::name(x); }, [](double x) { return math::name(x); }, \
              bound __VA_OPT__(, ) __VA_ARGS__)

TEST(Math, ExpIsAccurate) { EXPECT_ULPS(exp, 1); }
TEST(Math, LogIsAccurate) { EXPECT_ULPS(log, 1); }
TEST(Math, ErfIsAccurate) { EXPECT_ULPS(erf, 1.1); }
TEST(Math, TanhIsAccurate) { EXPECT_ULPS(tanh, 1.5); }
TEST(Math, SigmoidIsAccurate) { EXPECT_ULPS(sigmoid, 2); }
TEST(Math, NormalPdfIsAccurate) { EXPECT_ULPS(normal_pdf, 2); }
TEST(Math, NormalCdfIsAccurate) {
  EXPECT_ULPS(normal_cdf, 2, -0.65f, kInf);
  EXPECT_ULPS(normal_cdf, 4);  // the lower tail
}
TEST(Math, RsqrtIsAccurate) { EXPECT_ULPS(rsqrt, 1.5); }
TEST(Math, SinCosAreAccurate) {
  float s, c;
  expect_ulps([&](float u) { return math::sincos_2pi(u, s, c), s; },
              [](double u) { return std::sin(2 * kPi * (u - std::rint(u))); }, 2, 0x1p-100f, 0.4999f);
  expect_ulps([&](float u) { return math::sincos_2pi(u, s, c), c; },
              [](double u) { return std::sin(2 * kPi * (u < 0.5 ? 0.25 - u : u - 0.75)); }, 2, 0.0f, 1.0f);
}

TEST(Math, SpecialValues) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(math::exp(kInf), kInf);
  EXPECT_EQ(math::exp(-kInf), 0.0f);
  EXPECT_EQ(math::exp(0.0f), 1.0f);
  EXPECT_EQ(math::exp(88.8f), kInf);
  EXPECT_EQ(math::exp(-1e30f), 0.0f);
  EXPECT_EQ(math::log(0.0f), -kInf);
  EXPECT_EQ(math::log(1.0f), 0.0f);
  EXPECT_EQ(math::log(kInf), kInf);
  EXPECT_TRUE(std::isnan(math::log(-1.0f)));
  for (float sign : {1.0f, -1.0f}) {
    EXPECT_EQ(math::erf(sign * kInf), sign);
    EXPECT_EQ(math::erf(sign * 1e20f), sign);
    EXPECT_EQ(math::tanh(sign * kInf), sign);
    EXPECT_EQ(math::tanh(sign * 30.0f), sign);
    EXPECT_EQ(math::normal_pdf(sign * kInf), 0.0f);
    EXPECT_EQ(float_bits(math::erf(sign * 0.0f)), float_bits(sign * 0.0f));
    EXPECT_EQ(float_bits(math::tanh(sign * 0.0f)), float_bits(sign * 0.0f));
    const float n = math::copysign(nan, sign);
    EXPECT_TRUE(std::isnan(math::exp(n)));
    EXPECT_TRUE(std::isnan(math::log(n)));
    EXPECT_TRUE(std::isnan(math::erf(n)));
    EXPECT_TRUE(std::isnan(math::tanh(n)));
    EXPECT_TRUE(std::isnan(math::sigmoid(n)));
    EXPECT_TRUE(std::isnan(math::normal_pdf(n)));
    EXPECT_TRUE(std::isnan(math::normal_cdf(n)));
    EXPECT_TRUE(std::isnan(math::clamp(n, -1.0f, 1.0f)));
  }
  EXPECT_EQ(math::normal_cdf(-kInf), 0.0f);
  EXPECT_EQ(math::normal_cdf(kInf), 1.0f);
  EXPECT_EQ(math::normal_cdf(0.0f), 0.5f);
  EXPECT_EQ(math::sigmoid(-kInf), 0.0f);
  EXPECT_EQ(math::sigmoid(kInf), 1.0f);
}

TEST(Math, RoundingIsHalfToEven) {
  EXPECT_EQ(math::rint(0.5f), 0.0f);
  EXPECT_EQ(math::rint(1.5f), 2.0f);
  EXPECT_EQ(math::rint(-2.5f), -2.0f);
  EXPECT_EQ(math::rint(-2.500001f), -3.0f);
  EXPECT_EQ(math::clamp(5.0f, -1.0f, 3.0f), 3.0f);
  EXPECT_EQ(math::clamp(-5.0f, -1.0f, 3.0f), -1.0f);
}

}  // namespace
}  // namespace lowbit
