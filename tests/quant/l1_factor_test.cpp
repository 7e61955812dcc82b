// Gradient factors from the absolute sum of a weight.

#include "quant/ops/l1_factor.h"

#include <gtest/gtest.h>

#include <cmath>

#include "quant/observer/statistics.h"
#include "tests/support/golden.h"
#include "tests/support/op_case.h"

namespace lowbit::test {
namespace {

TEST(L1Factor, IsTheFormulaOnEveryDeviceCuda) {
  for (const int64_t n : {1, 33, 4096, 4097, 20001}) {
    const Tensor w = fill("w", {n}, 0.01, 0.3);
    const int highest[] = {7, 1};
    double l1 = 0;
    for (const float v : w.to_vector<float>()) l1 += std::fabs(double(v));
    const float half = sum_abs(w) / 2;
    const std::vector<float> lsq{float(1 / std::sqrt(double(half * 7.f))),
                                 float(1 / std::sqrt(double(half)))};
    const Tensor ours = l1_factors(w, highest, L1Factor::lsq);
    EXPECT_EQ(ours.to_vector<float>(), lsq) << n;
    const Tensor bins = l1_factors(w, std::span(highest, 1), L1Factor::bins);
    EXPECT_NEAR(bins.to_vector<float>()[0], float(1 / std::sqrt(double(float(l1)) * 7)), 1e-7) << n;
    if (!cuda_present()) continue;
    const Tensor there = w.to({Device::Kind::cuda, 0});
    EXPECT_TRUE(equal_bits(l1_factors(there, highest, L1Factor::lsq), ours)) << n;
    EXPECT_TRUE(equal_bits(l1_factors(there, std::span(highest, 1), L1Factor::bins), bins)) << n;
  }
  EXPECT_EQ(l1_factors(Tensor::zeros({5}), std::vector<int>{7}, L1Factor::lsq).to_vector<float>()[0], 1.f);
}

}  // namespace
}  // namespace lowbit::test
