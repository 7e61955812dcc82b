// Activations stored as bf16 (Context::gemm bf16): the ops that make them and those that read them.

#include "autograd/ops/narrow.h"

#include <gtest/gtest.h>

#include "autograd/core/node.h"
#include "autograd/ops/layer_norm.h"
#include "autograd/ops/linear.h"
#include "autograd/ops/pointwise.h"
#include "autograd/ops/reduce.h"
#include "autograd/ops/residual.h"
#include "autograd/ops/shape.h"
#include "autograd/ops/softmax.h"
#include "autograd/ops/windows.h"
#include "tests/support/golden.h"
#include "tests/support/op_case.h"

namespace lowbit::test {
namespace {

using In = std::span<const Variable>;

class In16 {
 public:
  In16() { context().gemm = MathMode::bf16; }
  ~In16() { context().gemm = before_; }
  In16(const In16&) = delete;

 private:
  MathMode before_ = context().gemm;
};
Function in16(const Function& f) {
  return [f](In v) {
    const In16 mode;
    return f(v);
  };
}

Tensor rounded(const Tensor& t) { return t.cast(DType::bf16).cast(t.dtype()); }

/// Inputs that are bf16 already, so that the function in float64, which rounds nothing, is the same.
void round_first(std::vector<Tensor>& in) { in[0] = rounded(in[0]); }
std::vector<InputSpec> one(const Shape& s) { return {{.name = "x", .shape = s}}; }
std::vector<InputSpec> two(const Shape& s) { return {{.name = "x", .shape = s}, {.name = "b", .shape = s}}; }
std::vector<InputSpec> norm_inputs(const Shape& s) {
  return {{.name = "x", .shape = s, .lo = -2, .hi = 3},
          {.name = "gamma", .shape = {s[-1]}, .lo = 0.5, .hi = 1.5},
          {.name = "beta", .shape = {s[-1]}}};
}
std::vector<InputSpec> rows(const Shape& s) { return {{.name = "x", .shape = s, .lo = -4, .hi = 4}}; }
constexpr WindowGrid kGrid{.height = 5, .width = 7, .size = 4, .shift_y = 1, .shift_x = 2};

OpCase residual_case(const char* name, double p, bool narrow_x, bool narrow_branch = false) {
  const Function f = [=](In v) {
    return residual(narrow_x ? narrowed(v[0]) : v[0], narrow_branch ? narrowed(v[1]) : v[1], p);
  };
  return {.name = name,
          .inputs = two({9, 7, 11}),
          .fn = in16(f),
          .gradient = Gradient::frozen_rounding,
          .surrogate = [f](std::span<const Tensor>) { return f; },  // straight through: the rounding left out
          .sizes =
              [](int64_t n) {
                return two({n, 3});
              },
          .allows_empty = true,
          .perf = {.inputs = two({64, 197, 192})}};
}

const bool registered = register_op_cases(
    "Narrow", {{.name = "narrowed",
                .inputs = one({6, 7, 5}),
                .fn = in16([](In v) { return narrowed(v[0]); }),
                .gradient = Gradient::identity,
                .sizes = [](int64_t n) { return one({n}); },
                .allows_empty = true},
               residual_case("residual", 0, true),
               residual_case("residual_of_f32", 0, false),
               residual_case("residual_of_bf16", 0, true, true),
               residual_case("residual_of_bf16_dropped", 0.3, true, true),
               residual_case("residual_dropped", 0.3, true),
               residual_case("residual_of_f32_dropped", 0.3, false),
               {.name = "layer_norm",
                .inputs = norm_inputs({3, 5, 192}),
                .fn = in16([](In v) { return layer_norm(narrowed(v[0]), v[1], v[2], 1e-6); }),
                .prepare = round_first,
                .sizes =
                    [](int64_t n) {
                      return norm_inputs({n < 100 ? n : 2, n});
                    },
                .perf = {.inputs = norm_inputs({64, 197, 192})}},
               {.name = "gelu",
                .inputs = one({7, 33}),
                .fn = in16([](In v) { return gelu(narrowed(v[0])); }),
                .prepare = round_first,
                .sizes = [](int64_t n) { return one({n}); },
                .allows_empty = true,
                .perf = {.inputs = one({64, 197, 768})}},
               {.name = "softmax",
                .inputs = rows({2, 3, 13}),
                .fn = in16([](In v) { return narrowed_softmax(v[0]); }),
                .gradient = Gradient::frozen_rounding,  // left out, as in residual_case
                .surrogate = [](std::span<const Tensor>) { return [](In v) { return softmax(v[0]); }; },
                .sizes =
                    [](int64_t n) {
                      return rows({2, n});
                    },
                .perf = {.inputs = rows({64, 3, 197, 197})}},
               {.name = "windows",
                .inputs = one({2, 5, 7, 3}),
                .fn = in16([](In v) { return window_partition(narrowed(v[0]), kGrid); }),
                .prepare = round_first}});

TEST(Narrow, OtherPrecisionsRoundNothing) {
  const Variable x(fill("x", {3, 5}, -1, 1));
  EXPECT_EQ(narrowed(x).impl(), x.impl());
  EXPECT_EQ(residual(x, x, 0).narrow(), nullptr);
  context().gemm = MathMode::tf32;
  EXPECT_EQ(narrowed(x).impl(), x.impl());
  EXPECT_EQ(residual(x, x, 0).narrow(), nullptr);
  context().gemm = MathMode::f32;
}

TEST(Narrow, IsF32ToTheTape) {
  const In16 mode;
  const Variable x(fill("x", {3, 5}, -1, 1), true), y = narrowed(x);
  EXPECT_EQ(y.dtype(), DType::f32);
  ASSERT_TRUE(y.narrow());
  EXPECT_EQ(y.narrow()->dtype(), DType::bf16);
  EXPECT_EQ(difference(y.data(), rounded(x.data())), "");
  EXPECT_EQ(narrowed(y).impl(), y.impl()) << "rounded once";
  EXPECT_TRUE(y.detach().narrow());
  EXPECT_TRUE(reshape(y, {15}).narrow()) << "moves keep what they move";
  sum(y, {0, 1}).backward();
  EXPECT_EQ(x.grad().dtype(), DType::f32);
}

TEST(Narrow, ResidualRoundsTheSumOnce) {
  const Tensor x = rounded(fill("x", {40, 7, 3}, -1, 1)), b = fill("b", {40, 7, 3}, -1, 1);
  const Tensor gy = fill("gy", x.shape(), -1, 1);
  for (const double p : {0.0, 0.3}) {
    const auto run = [&] {
      context().generator = Generator(5);
      const Variable v(x, true), w(b, true), y = residual(narrowed(v), w, p);
      y.backward(gy);
      return std::tuple(y, v.grad(), w.grad(), context().generator.state());
    };
    const auto [wide, wide_x, wide_b, wide_state] = run();
    const In16 mode;
    const auto [y, dx, db, state] = run();
    ASSERT_TRUE(y.narrow());
    EXPECT_EQ(difference(*y.narrow(), wide.data().cast(DType::bf16)), "");
    EXPECT_EQ(difference(dx, wide_x), "");
    EXPECT_EQ(difference(db, wide_b), "");
    EXPECT_EQ(state, wide_state);
  }
}

/// Of floats: rounded once, after the rounded bias, and straight through. Codes and other precisions give
/// f32.
TEST(Narrow, LinearRoundsItsOutputsOnce) {
  const Tensor x = fill("x", {4, 5, 7}, -1, 1), w = fill("w", {6, 7}, -1, 1), b = fill("b", {6}, -1, 1),
               u = fill("u", {3, 7}, -1, 1), gy = fill("gy", {4, 5, 3}, -1, 1);
  const auto outputs = [&](const Variable& from, const Tensor& bias, bool narrow) {
    const LinearLayer layers[] = {{Variable(w), Variable(bias), 2, narrow}, {Variable(u), {}, 1, narrow}};
    return linear_outputs(from, layers);
  };
  EXPECT_EQ(outputs(Variable(x), b, true)[0].narrow(), nullptr);
  const In16 mode;
  const Variable v(x, true), wide_v(x, true);
  const std::vector<Variable> y = outputs(v, b, true), wide = outputs(wide_v, rounded(b), false);
  ASSERT_EQ(y.size(), 3u);
  for (size_t i = 0; i < y.size(); ++i) {
    ASSERT_TRUE(y[i].narrow());
    EXPECT_EQ(wide[i].narrow(), nullptr);
    EXPECT_EQ(difference(*y[i].narrow(), wide[i].data().cast(DType::bf16)), "");
  }
  y[1].backward(gy), wide[1].backward(gy);
  EXPECT_EQ(difference(v.grad(), wide_v.grad()), "");
  const LinearLayer one[] = {{Variable(u), {}, 1, true}};
  EXPECT_TRUE(linear_outputs(v, one)[0].narrow());

  Coded codes;
  codes.codes = Tensor::full({4, 7}, 3, DType::u8), codes.scale = Tensor::scalar(0.5f);
  EXPECT_EQ(outputs(Variable(codes), b, true)[0].narrow(), nullptr);
}

/// Ops that read bf16 have the bits of the same op on the widened values, and keep half.
void expect_reads(const std::function<Variable(const Variable&)>& op, const Shape& shape) {
  const In16 mode;
  const auto run = [&](const Variable& x) {
    const Variable y = op(x);
    const auto kept = saved_memory(y);
    y.backward(fill("gy", y.shape(), -1, 1));
    size_t bytes = 0;
    for (const auto& [name, n] : kept) bytes += n;
    return std::tuple(y.data(), x.grad(), bytes);
  };
  const Tensor t = fill("x", shape, -2, 2).cast(DType::bf16);
  const auto [y, dx, bytes] = run(Variable(Narrow{t}, true));
  const auto [wide_y, wide_dx, wide_bytes] = run(Variable(t.cast(DType::f32), true));
  EXPECT_EQ(difference(y, wide_y), "");
  EXPECT_EQ(difference(dx, wide_dx), "");
  EXPECT_EQ(wide_bytes - bytes, size_t(2 * t.numel()));
}

TEST(Narrow, ReadersHaveTheBitsOfWidenedValuesAndKeepHalf) {
  const Variable gamma(fill("gamma", {33}, 0.5, 1.5)), beta(fill("beta", {33}, -1, 1));
  expect_reads([&](const Variable& x) { return layer_norm(x, gamma, beta, 1e-6); }, {4, 5, 33});
  expect_reads([](const Variable& x) { return gelu(x); }, {4, 5, 33});
  expect_reads(
      [&](const Variable& x) {
        return recompute([](In v) { return gelu(v[0]); }, {&x, 1});
      },
      {4, 5, 33});
}

/// The rounding that a product of bf16 gives its operand anyway: the product does not change, and softmax
/// keeps half. Its gradient is that of the rounded probabilities.
TEST(Narrow, SoftmaxIsRoundedAsTheProductDoes) {
  const In16 mode;
  const Shape shape{3, 2, 5, 13};
  const Tensor x = fill("x", shape, -4, 4), values = fill("v", {3, 13, 6}, -1, 1),
               gy = fill("gy", {3, 5, 6}, -1, 1);
  struct Run {
    Variable p;
    Tensor y, dx, dv;
    size_t bytes;
  };
  const auto run = [&](Variable (*f)(const Variable&)) {
    const Variable scores(x, true), v(values, true), p = f(scores), y = attention_context(p, v, 2);
    const auto kept = saved_memory(y);
    y.backward(gy);
    return Run{p, y.data(), scores.grad(), v.grad(), kept.at("softmax") + kept.at("attention_context")};
  };
  const Run wide = run(softmax), narrow = run(narrowed_softmax);
  ASSERT_TRUE(narrow.p.narrow());
  EXPECT_EQ(narrow.p.narrow()->stride(-2), 16) << "rows begin at multiples of 16 bytes";
  EXPECT_EQ(difference(narrow.p.narrow()->packed(), wide.p.data().cast(DType::bf16)), "");
  EXPECT_EQ(difference(narrow.y, wide.y), "");
  EXPECT_EQ(difference(narrow.dv, wide.dv), "");
  const size_t rows = 3 * 2 * 5, v_bytes = 2 * size_t(values.numel());
  EXPECT_EQ(wide.bytes, rows * 13 * 4 + v_bytes);
  EXPECT_EQ(narrow.bytes, rows * 16 * 2 + v_bytes);

  const Variable p(Narrow{narrow.p.narrow()->packed()}, true);
  attention_context(p, Variable(values), 2).backward(gy);
  const Tensor y = p.data(), dp = p.grad();
  Tensor dx = Tensor::empty(shape);
  softmax_bwd({dx.mutable_view(), dp.view(), y.view(), int64_t(rows), 13}, Device{});
  EXPECT_EQ(difference(narrow.dx, dx), "");
}

/// A value that was put off and is made from a narrow one, in forward and by replay.
TEST(Narrow, RecomputeGivesTheSameBits) {
  const In16 mode;
  const Tensor x = fill("x", {6, 5, 8}, -1, 1), gy = fill("gy", x.shape(), -1, 1);
  const Variable gamma(fill("gamma", {8}, 0.5, 1.5), true), beta(fill("beta", {8}, -1, 1), true);
  const auto block = [&](In v) {
    return residual(v[0], gelu(narrowed(layer_norm(v[0], gamma, beta, 1e-6))), 0.3);
  };
  const auto run = [&](bool again) {
    context().generator = Generator(7);
    gamma.zero_grad(), beta.zero_grad();
    const Variable v(x, true), first = narrowed(v);
    const Variable y = again ? recompute(block, {&first, 1}) : block({&first, 1});
    EXPECT_TRUE(y.narrow());
    y.backward(gy);
    return std::tuple(y.data(), v.grad(), gamma.grad());
  };
  const auto [y0, x0, g0] = run(false);
  const auto [y1, x1, g1] = run(true);
  EXPECT_TRUE(equal_bits(y0, y1) && equal_bits(x0, x1) && equal_bits(g0, g1));
}

}  // namespace
}  // namespace lowbit::test
