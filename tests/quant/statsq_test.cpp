// statsq as an op and against the published quantizer.

#include "quant/ops/statsq.h"

#include <gtest/gtest.h>

#include <cmath>

#include "autograd/core/node.h"
#include "tensor/core/context.h"
#include "tests/support/golden.h"
#include "tests/support/op_case.h"

namespace lowbit::test {
namespace {

std::vector<InputSpec> input(const Shape& s) { return {{.name = "w", .shape = s}}; }

OpCase make_case(const std::string& name, int bits, const Shape& s) {
  OpCase c;
  c.name = name;
  c.inputs = input(s);
  c.fn = [bits](std::span<const Variable> v) { return statsq(v[0], bits); };
  c.gradient = Gradient::identity;
  return c;
}

std::vector<OpCase> cases() {
  OpCase rows = make_case("w2", 2, {12, 33});
  rows.sizes = [](int64_t n) { return input({5, n}); };
  rows.allows_empty = true;
  rows.perf.inputs = input({768, 768});
  const Variable w(Tensor::full({2, 3}, 0.5));
  rows.misuse = {{"bits", [=] { (void)statsq(w, 9); }, "statsq: bits must lie in [1, 8] (got 9)"},
                 {"vector", [] { (void)statsq(Variable(Tensor::zeros({3})), 2); },
                  "statsq: w must have two to four dimensions (got w=[3] f32 cpu)"},
                 {"infinite",
                  [] {
                    (void)statsq(Variable(Tensor::full({1, 2}, INFINITY)), 2, "head.weight");
                  },
                  "head.weight: x must be finite (got a mean of inf in group 0)"}};
  return {rows, make_case("w4", 4, {3, 5, 17}), make_case("w8", 8, {2, 3, 4, 9})};
}

const bool registered = register_op_cases("StatsQ", cases());

TEST(StatsQ, CodesAndFloatsHaveTheSameBits) {
  const Tensor w = fill("w", {7, 33}, 0, 1);
  for (int bits = 1; bits <= 8; ++bits) {
    const Variable y = statsq(Variable(w), bits);
    ASSERT_TRUE(y.coded());
    context().integer_products = false;
    const Variable z = statsq(Variable(w), bits);
    context().integer_products = true;
    ASSERT_FALSE(z.coded());
    EXPECT_EQ(difference(y.data(), z.data()), "") << bits;
  }
}

TEST(StatsQ, ARowOfZerosIsZero) {
  const float w[] = {0, 0, 1, -3};
  const std::vector<float> y = statsq(Variable(Tensor::from(w, {2, 2})), 2).data().to_vector<float>();
  EXPECT_EQ(y, (std::vector<float>{0, 0, 1, -3}));
}

TEST(OfqGolden, StatsQ) {
  LOWBIT_GOLDEN_OR_SKIP(path, "ofq/statsq.safetensors");
  const GoldenFile g(path);
  for (const auto& [name, settings] : g.cases()) {
    SCOPED_TRACE(name);
    const Variable w(g.tensor(name + "/in/w"), true);
    const Variable y = statsq(w, settings.at("bits"));
    expect_close(y.data(), g.tensor(name + "/out/wq"), g.rtol(), g.atol(), name + "/out/wq");
    ASSERT_TRUE(y.coded());
    const int bits = settings.at("bits");
    Tensor a = y.coded()->scale.to(Device{}).clone();
    for (int64_t i = 0; i < a.numel(); ++i) a.data<float>()[i] *= float(1 << (bits - 1));
    expect_close(a, g.tensor(name + "/out/scale"), g.rtol(), g.atol(), name + "/out/scale");
    const Tensor level = g.tensor(name + "/out/level");
    EXPECT_EQ(y.coded()->codes.cast(DType::i32).to_vector<int32_t>(), level.to_vector<int32_t>());
    for (int32_t l : level.to_vector<int32_t>()) {
      EXPECT_GE(l, y.coded()->lo);
      EXPECT_LE(l, y.coded()->hi);
    }
    y.backward(g.tensor(name + "/g_out"));
    EXPECT_EQ(difference(w.grad(), g.tensor(name + "/g_in/w")), "");
  }
}

}  // namespace
}  // namespace lowbit::test
