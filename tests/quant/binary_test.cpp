// binarize as an op, against the published modules, and the sums it shares with other quantizers.

#include "quant/ops/binary.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "autograd/core/node.h"
#include "autograd/ops/linear.h"
#include "quant/quantizer/binary_quantizer.h"
#include "tests/support/golden.h"
#include "tests/support/op_case.h"

namespace lowbit::test {
namespace {

GroupLayout per_sample(const Shape& x, int64_t columns) {
  return {.groups = x[0], .inner = x.numel() / (x[0] * columns), .columns = columns};
}

using LayoutOf = std::function<GroupLayout(const Shape&)>;

/// Zero stays; everything else keeps clear of ±1 and of the sign's jump.
std::vector<InputSpec> input(const Shape& s) {
  return {{.name = "x", .shape = s, .lo = -2, .hi = 2, .avoid = {.step = 1, .margin = 0.01}}};
}

/// clamp(x, −1, 1) plus what was rounded away at the base point.
Function surrogate(const LayoutOf& layout, std::span<const Tensor> base) {
  const Shape shape = base[0].shape();
  const std::vector<double> x0 = base[0].to_vector<double>(),
                            y0 = binarize(Variable(base[0]), layout(shape)).data().to_vector<double>();
  return [=](std::span<const Variable> in) {
    std::vector<double> y = in[0].data().to_vector<double>();
    for (size_t i = 0; i < y.size(); ++i)
      y[i] = std::clamp(y[i], -1.0, 1.0) - std::clamp(x0[i], -1.0, 1.0) + y0[i];
    return Variable(Tensor::from(std::span<const double>(y), shape));
  };
}

OpCase make_case(const std::string& name, const Shape& shape, const LayoutOf& layout) {
  OpCase c;
  c.name = name;
  c.inputs = input(shape);
  c.fn = [layout](std::span<const Variable> v) { return binarize(v[0], layout(v[0].shape())); };
  c.gradient = Gradient::frozen_rounding;
  c.surrogate = [layout](std::span<const Tensor> base) { return surrogate(layout, base); };
  return c;
}

std::vector<OpCase> cases() {
  const LayoutOf whole = [](const Shape& x) { return GroupLayout{.inner = x.numel()}; };
  OpCase tensor = make_case("tensor", {12, 33}, whole);
  tensor.sizes = [](int64_t n) { return input({3, n}); };
  tensor.allows_empty = true;
  tensor.perf.inputs = input({768, 768});
  tensor.misuse = {
      {"dtype",
       [=] {
         const Tensor x = Tensor::zeros({2}, DType::i64);
         (void)binarize(Variable(x), whole(x.shape()));
       },
       "binarize: x must be f32 or f64 (got x=[2] i64 cpu)"},
      {"infinite",
       [=] {
         const Tensor x = Tensor::full({4}, INFINITY);
         (void)binarize(Variable(x), whole(x.shape()), "blocks.0.mlp.in");
       },
       "blocks.0.mlp.in: x must be finite (got a mean of inf in group 0)"},
  };
  OpCase sample = make_case("sample", {3, 7, 11}, [](const Shape& x) { return per_sample(x, 1); });
  sample.sizes = [](int64_t n) { return input({2, n, 3}); };
  OpCase column = make_case("column", {2, 3, 7, 5}, [](const Shape& x) { return per_sample(x, x[-1]); });
  column.perf.inputs = input({32, 3, 197, 64});
  return {tensor, sample, column};
}

const bool registered = register_op_cases("Binarize", cases());

/// Against the definition written down.
TEST(MeanAbs, EqualsTheDefinitionForEveryLayout) {
  for (const GroupLayout l :
       {GroupLayout{.inner = 5000}, GroupLayout{.groups = 3, .inner = 700},
        GroupLayout{.outer = 4, .groups = 3, .inner = 50}, GroupLayout{.outer = 300, .groups = 7},
        GroupLayout{.groups = 2, .inner = 260, .columns = 9}}) {
    const Tensor x = fill("x", {l.members() * l.scales()}, 0.1, 1);
    std::vector<double> sum(size_t(l.scales()));
    const float* v = x.data_const<float>();
    for (int64_t o = 0; o < l.outer; ++o)
      for (int64_t g = 0; g < l.groups; ++g)
        for (int64_t i = 0; i < l.inner; ++i)
          for (int64_t c = 0; c < l.columns; ++c)
            sum[size_t(g * l.columns + c)] +=
                std::fabs(v[((o * l.groups + g) * l.inner + i) * l.columns + c]) / double(l.members());
    const Tensor expected = Tensor::from(std::span<const double>(sum), {l.scales()}).cast(DType::f32);
    expect_close(mean_abs(x, l), expected, 1e-6, 0, str_cat(l.outer, " ", l.groups, " ", l.inner));
  }
}

TEST(BinaryQuantizer, CodesAreSigns) {
  BinaryQuantizer q({.bits = 1, .is_weight = true});
  const float x[] = {-3, -0.5f, 0, 0.5f};
  const Tensor codes = q.codes(Tensor::from(x, {4}));
  EXPECT_EQ(codes.to_vector<int32_t>(), (std::vector<int32_t>{-1, -1, 0, 1}));
  EXPECT_EQ(q.clipped_share(Tensor::from(x, {4})), 0.25);
  EXPECT_EQ(q.scale().item<float>(), 1);
  EXPECT_THROW(BinaryQuantizer({.bits = 2}), Error);
}

/// Heads side by side in the last dimension give the scales of heads in a dimension of their own.
TEST(BinaryQuantizer, ColumnsOfHeadsAreShared) {
  const QuantSpec spec{.bits = 1, .granularity = Granularity::column};
  const Tensor apart = fill("x", {2, 3, 6, 8}, 0, 1);                              // [B, H, N, D]
  const Tensor merged = apart.permute({0, 2, 1, 3}).packed().reshape({2, 6, 24});  // [B, N, H·D]
  const Tensor a = BinaryQuantizer(spec).fake_quant(Variable(apart)).data();
  const Tensor m = BinaryQuantizer(spec, 3).fake_quant(Variable(merged)).data();
  expect_close(m, a.permute({0, 2, 1, 3}).packed().reshape({2, 6, 24}), 1e-6, 0, "merged heads");
}

TEST(VvtqGolden, Binary) {
  LOWBIT_GOLDEN_OR_SKIP(path, "vvtq/binary.safetensors");
  const GoldenFile g(path);
  std::set<std::string> names;
  for (const std::string& n : g.names()) names.insert(n.substr(0, n.find('.')));
  EXPECT_EQ(names.size(), 3u);
  for (const std::string& name : names) {
    SCOPED_TRACE(name);
    const auto part = [&](const char* p) { return g.tensor(name + "." + p); };
    const auto check = [&](const Tensor& ours, const char* p) {
      expect_close(ours, part(p), g.rtol(), g.atol(), name + "." + p);
    };
    const Variable x(part("x"), true);
    if (!g.has(name + ".weight")) {
      const auto granularity = x.ndim() == 3 ? Granularity::sample : Granularity::column;
      const Variable y = BinaryQuantizer({.bits = 1, .granularity = granularity}).fake_quant(x);
      check(y.data(), "y");
      y.backward(part("upstream"));
      check(x.grad(), "grad_x");
      continue;
    }
    const Variable w(part("weight"), true), b(part("bias"), true);
    const Variable y = linear(x, BinaryQuantizer({.bits = 1, .is_weight = true}).fake_quant(w), b);
    check(y.data(), "y");
    y.backward(part("upstream"));
    check(x.grad(), "grad_x"), check(w.grad(), "grad_weight"), check(b.grad(), "grad_bias");
  }
}

}  // namespace
}  // namespace lowbit::test
