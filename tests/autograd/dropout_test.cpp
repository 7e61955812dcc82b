#include "autograd/ops/dropout.h"

#include <gtest/gtest.h>

#include <cmath>

#include "autograd/core/variable.h"
#include "autograd/ops/drop_path.h"
#include "tensor/core/context.h"
#include "tests/support/op_case.h"

namespace lowbit::test {
namespace {

std::vector<InputSpec> input(Shape s) { return {{.name = "x", .shape = s, .lo = 0.5, .hi = 1.5}}; }

const bool registered = register_op_cases(
    "Dropout", {{.name = "dropout",
                 .inputs = input({6, 7, 5}),
                 .fn = [](std::span<const Variable> v) { return dropout(v[0], 0.3); },
                 .sizes = [](int64_t n) { return input({n}); },
                 .allows_empty = true,
                 .misuse = {{"probability", [] { dropout(Variable(Tensor::zeros({2})), 1); },
                             "dropout: p must be in [0, 1) (got 1)"}},
                 .perf = {.inputs = input({64, 197, 192})}},
                {.name = "drop_path",
                 .inputs = input({40, 3, 2}),
                 .fn = [](std::span<const Variable> v) { return drop_path(v[0], 0.3); },
                 .sizes =
                     [](int64_t n) {
                       return input({n, 3});
                     },
                 .allows_empty = true,
                 .misuse = {{"probability", [] { drop_path(Variable(Tensor::zeros({2})), -0.1); },
                             "drop_path: p must be in [0, 1) (got -0.1)"},
                            {"scalar", [] { drop_path(Variable(Tensor::zeros(Shape{})), 0.1); },
                             "drop_path: x must have at least one dimension (got x=[] f32 cpu)"}},
                 .perf = {.inputs = input({64, 197, 192})}}});

double kept_share(const Tensor& y) {
  double kept = 0;
  for (float v : y.to_vector<float>()) kept += v != 0;
  return kept / double(y.numel());
}

TEST(Dropout, KeepsTheStatedShareAndDrawsAnewEveryCall) {
  context().generator = Generator(3);
  const Variable x(Tensor::full({200000}, 1));
  const Tensor a = dropout(x, 0.3).data(), b = dropout(x, 0.3).data();
  EXPECT_NEAR(kept_share(a), 0.7, 0.005);
  EXPECT_FALSE(equal_bits(a, b));
  context().generator.set_state(0);
  EXPECT_TRUE(equal_bits(a, dropout(x, 0.3).data()));
  for (float v : a.to_vector<float>()) ASSERT_TRUE(v == 0 || v == float(1 / (1 - 0.3))) << v;
}

TEST(Dropout, ElementReadsItsOwnPhiloxWord) {
  context().generator = Generator(11);
  const RngKey key{11, 0, 0, nullptr};
  const std::vector<float> y = dropout(Variable(Tensor::full({1001}, 1)), 0.4).data().to_vector<float>();
  for (size_t i = 0; i < y.size(); ++i) ASSERT_EQ(y[i] != 0, philox_uniform(key, i) >= 0.4f) << i;
}

TEST(Dropout, ZeroProbabilityIsTheIdentityAndDrawsNothing) {
  const uint64_t before = context().generator.state();
  const Variable x(Tensor::full({5}, 2));
  EXPECT_EQ(dropout(x, 0).impl(), x.impl());
  EXPECT_EQ(drop_path(x, 0).impl(), x.impl());
  EXPECT_EQ(context().generator.state(), before);
}

TEST(DropPath, DropsWholeSamplesAndScalesTheRest) {
  context().generator = Generator(5);
  const RngKey key{5, 0, 0, nullptr};
  const Tensor y = drop_path(Variable(Tensor::full({5000, 3}, 1)), 0.2).data();
  for (int64_t b = 0; b < 5000; ++b) {
    const float expected = std::floor(0.8f + philox_uniform(key, uint64_t(b))) / 0.8f;
    for (int64_t c = 0; c < 3; ++c) ASSERT_EQ(y.data_const<float>()[b * 3 + c], expected) << b;
  }
  EXPECT_NEAR(kept_share(y), 0.8, 0.02);
}

}  // namespace
}  // namespace lowbit::test
