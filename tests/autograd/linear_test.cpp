#include "autograd/ops/linear.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "autograd/core/node.h"
#include "autograd/ops/broadcast.h"
#include "autograd/ops/pointwise.h"
#include "autograd/ops/shape.h"
#include "tensor/core/context.h"
#include "tensor/core/thread_pool.h"
#include "tests/support/device_calls.h"
#include "tests/support/golden.h"
#include "tests/support/op_case.h"

namespace lowbit {
namespace {

using namespace test;
using In = std::span<const Variable>;

Variable zeros(const Shape& s) { return Variable(Tensor::zeros(s)); }

/// Side by side, each with another factor.
Variable joined(std::vector<Variable> outputs) {
  for (size_t i = 1; i < outputs.size(); ++i) outputs[i] = scale(outputs[i], 1.0 - 1.5 * double(i));
  return concat(outputs, -1);
}

const bool cases = register_op_cases(
    "Linear",
    {
        {.name = "bias",
         .inputs = {{.name = "x", .shape = {2, 3, 5}},
                    {.name = "w", .shape = {4, 5}},
                    {.name = "b", .shape = {4}}},
         .fn = [](In v) { return linear(v[0], v[1], v[2]); },
         .parity = {Parity::Kind::gemm, 6, 1576},
         .sizes = [](int64_t n) -> std::vector<InputSpec> {
           return {
               {.name = "x", .shape = {2, n}}, {.name = "w", .shape = {3, n}}, {.name = "b", .shape = {3}}};
         },
         .misuse =
             {{"inner",
               [] {
                 linear(zeros({8, 197, 192}), zeros({576, 384}), Variable{});
               },
               "linear: weight.shape[1] must equal x.shape[-1] (got x=[8, 197, 192] f32 cpu, weight=[576, "
               "384] f32 cpu)"},
              {"bias",
               [] {
                 linear(zeros({2, 3}), zeros({4, 3}), zeros({3}));
               },
               "linear: bias must have one value per output (got bias=[3] f32 cpu, weight=[4, 3] f32 cpu)"}},
         .perf = {.inputs = {{.name = "x", .shape = {8, 197, 192}},
                             {.name = "w", .shape = {768, 192}},
                             {.name = "b", .shape = {768}}},
                  .flops = 2.0 * 1576 * 192 * 768}},
        {.name = "parts",
         .inputs = {{.name = "x", .shape = {2, 3, 5}},
                    {.name = "w", .shape = {12, 5}},
                    {.name = "b", .shape = {12}}},
         .fn =
             [](In v) {
               return joined(linear_outputs(v[0], std::array{LinearLayer{v[1], v[2], 3}}));
             },
         .parity = {Parity::Kind::gemm, 6},
         .misuse = {{"parts",
                     [] { linear_outputs(zeros({2, 3}), std::array{LinearLayer{zeros({4, 3}), {}, 3}}); },
                     "linear: rows must be cut into equal parts (got 3 of weight=[4, 3] f32 cpu)"}}},
        {.name = "layers",
         .inputs = {{.name = "x", .shape = {7, 5}},
                    {.name = "w", .shape = {4, 5}},
                    {.name = "b", .shape = {4}},
                    {.name = "u", .shape = {6, 5}}},
         .fn =
             [](In v) {
               return joined(
                   linear_outputs(v[0], std::array{LinearLayer{v[1], v[2]}, LinearLayer{v[3], {}, 2}}));
             },
         .parity = {Parity::Kind::gemm, 6}},
        {.name = "an_output_that_nobody_uses",
         .inputs = {{.name = "x", .shape = {7, 5}},
                    {.name = "w", .shape = {9, 5}},
                    {.name = "b", .shape = {9}}},
         .fn =
             [](In v) {
               const auto y = linear_outputs(v[0], std::array{LinearLayer{v[1], v[2], 3}});
               return joined({y[0], y[2]});
             },
         .parity = {Parity::Kind::gemm, 6}},
        {.name = "rows",
         .inputs = {{.name = "x", .shape = {6, 5}}, {.name = "w", .shape = {4, 5}}},
         .fn = [](In v) { return linear(v[0], v[1], Variable{}); },
         .parity = {Parity::Kind::gemm, 6},
         .sizes = [](int64_t n) -> std::vector<InputSpec> {
           return {{.name = "x", .shape = {n, 3}}, {.name = "w", .shape = {2, 3}}};
         }},
    });

const bool products = register_op_cases(
    "Matmul",
    {
        {.name = "batched",
         .inputs = {{.name = "a", .shape = {2, 3, 4, 5}}, {.name = "b", .shape = {2, 3, 5, 2}}},
         .fn = [](In v) { return matmul(v[0], v[1]); },
         .parity = {Parity::Kind::gemm, 5},
         .misuse = {{"inner",
                     [] {
                       matmul(zeros({2, 3}), zeros({4, 2}));
                     },
                     "matmul: a.shape[-1] must equal b.shape[-2] and leading dimensions must agree (got "
                     "a=[2, 3] f32 cpu, b=[4, 2] f32 cpu)"}}},
        {.name = "scores",
         .inputs = {{.name = "q", .shape = {2, 5, 6}}, {.name = "k", .shape = {2, 4, 6}}},
         .fn = [](In v) { return attention_scores(v[0], v[1], 3, 0.7); },
         .parity = {Parity::Kind::gemm, 5, 197},
         .misuse =
             {{"heads",
               [] {
                 attention_scores(zeros({2, 5, 6}), zeros({2, 5, 6}), 4, 1);
               },
               "attention_scores: q and k must be [B, N, C] with heads dividing C, or k [B, heads, N, C] "
               "(got q=[2, 5, 6] f32 cpu, k=[2, 5, 6] f32 cpu, heads=4)"},
              {"bias",
               [] {
                 attention_scores(zeros({2, 5, 6}), zeros({2, 4, 6}), 3, 1, zeros({3, 3, 5, 4}));
               },
               "attention_scores: bias must be [R, heads, N, M] with R dividing B (got bias=[3, 3, 5, 4] f32 "
               "cpu, scores=[2, 3, 5, 4])"}},
         .perf = {.inputs = {{.name = "q", .shape = {8, 197, 192}}, {.name = "k", .shape = {8, 197, 192}}},
                  .flops = 2.0 * 8 * 197 * 197 * 192}},
        {.name = "scores_with_biases",
         .inputs = {{.name = "q", .shape = {4, 5, 6}},
                    {.name = "k", .shape = {4, 4, 6}},
                    {.name = "bias", .shape = {2, 3, 5, 4}}},
         .fn = [](In v) { return attention_scores(v[0], v[1], 3, 0.7, v[2]); },
         .parity = {Parity::Kind::gemm, 5, 5}},
        {.name = "scores_with_one_bias",
         .inputs = {{.name = "q", .shape = {3, 5, 6}},
                    {.name = "k", .shape = {3, 3, 4, 6}},
                    {.name = "bias", .shape = {1, 3, 5, 4}}},
         .fn = [](In v) { return attention_scores(v[0], v[1], 3, 0.7, v[2]); },
         .parity = {Parity::Kind::gemm, 6, 5}},
        {.name = "context",
         .inputs = {{.name = "p", .shape = {2, 3, 5, 4}}, {.name = "v", .shape = {2, 4, 6}}},
         .fn = [](In v) { return attention_context(v[0], v[1], 3); },
         .parity = {Parity::Kind::gemm, 5},
         .misuse = {{"shape", [] { attention_context(zeros({2, 3, 5, 4}), zeros({2, 5, 6}), 3); },
                     "attention_context: p must be [B, H, N, M] and v [B, M, C] with H dividing C (got p=[2, "
                     "3, 5, 4] f32 cpu, v=[2, 5, 6] f32 cpu)"}}},
    });

/// Deterministic codes in [lo, hi] with the scale, offset and shift of a quantizer.
Coded make_codes(const std::string& name, const Shape& s, int bits, bool is_signed, bool as_weight,
                 double offset) {
  Coded c;
  const int n = 1 << bits, qmin = is_signed ? -n / 2 : 0;
  const Tensor u = fill(name, s, 0, 1);
  const float* f = u.data_const<float>();
  c.codes = Tensor::empty(s, as_weight ? DType::i8 : DType::u8);
  for (int64_t i = 0; i < s.numel(); ++i) {
    const int q = qmin + std::min(n - 1, int((f[i] + 1) * 0.5f * float(n)));
    if (as_weight)
      c.codes.data<int8_t>()[i] = int8_t(q);
    else
      c.codes.data<uint8_t>()[i] = uint8_t(q - qmin);
  }
  c.scale = Tensor::full({1}, 0.037 * bits);
  if (offset != 0) c.offset = Tensor::full({1}, offset);
  c.shift = as_weight ? 0 : qmin;
  c.lo = as_weight ? qmin : 0, c.hi = as_weight ? qmin + n - 1 : n - 1;
  return c;
}

/// The same with a scale for every index of `axis`, or every head and index, and a vector of offsets.
Coded along(Coded c, int axis, bool offsets) {
  const auto spread = [](const Shape& s, double first, double step) {
    Tensor t = Tensor::empty(s);
    for (int64_t i = 0; i < t.numel(); ++i) t.data<float>()[i] = float(first + step * double(i * 7 % 11));
    return t;
  };
  const bool heads = c.codes.ndim() == 4 && c.lo == 0 && offsets;
  const int64_t n = c.codes.size(axis), width = c.codes.size(-1);
  c.scale_axis = axis;
  c.scale = spread(heads ? Shape{c.codes.size(1), n} : Shape{n}, 0.05, 0.01);
  if (offsets) c.offset = spread(heads ? Shape{c.codes.size(1), width} : Shape{width}, -0.4, 0.1);
  return c;
}

/// Levels at half integers.
Coded halves(Coded c) {
  c.shift = 0.5;
  return c;
}

std::vector<double> exact_values(const Coded& c) {
  const double s = c.scale.item<float>(), b = c.offset.defined() ? c.offset.item<float>() : 0;
  std::vector<double> v;
  for (double q : c.codes.cast(DType::f64).to_vector<double>()) v.push_back(s * (q + c.shift) + b);
  return v;
}

class CodedProduct : public testing::TestWithParam<std::tuple<int, int, bool, double>> {};

/// The integer forward against the float64 product of the same values: 2e-7 of the largest output.
TEST_P(CodedProduct, EqualsFloat64Product) {
  const auto [abits, wbits, is_signed, offset] = GetParam();
  for (const auto& [m, k, n] :
       {std::tuple<int64_t, int64_t, int64_t>{7, 192, 33}, {31, 65, 1}, {1, 768, 16}, {64, 3, 64}}) {
    const Coded x = make_codes("x", {m, k}, abits, is_signed, false, offset),
                w = make_codes("w", {n, k}, wbits, true, true, 0);
    const Tensor bias = fill("b", {n}, 0, 1);
    NoGrad off;
    const std::vector<float> y = linear(Variable(x), Variable(w), Variable(bias)).data().to_vector<float>();
    const std::vector<double> xe = exact_values(x), we = exact_values(w);
    double worst = 0, largest = 0;
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j) {
        double sum = bias.data<float>()[j], size = std::fabs(sum);
        for (int64_t c = 0; c < k; ++c) {
          const double term = xe[size_t(i * k + c)] * we[size_t(j * k + c)];
          sum += term, size += std::fabs(term);
        }
        worst = std::max(worst, std::fabs(sum - double(y[size_t(i * n + j)])));
        largest = std::max(largest, std::fabs(sum));
      }
    EXPECT_LE(worst, 2e-7 * largest) << m << "x" << k << "x" << n;
  }
}
INSTANTIATE_TEST_SUITE_P(Linear, CodedProduct,
                         testing::Combine(testing::Range(2, 9), testing::Range(2, 9), testing::Bool(),
                                          testing::Values(0.0, -0.31)));

/// bf16 rounds operands once, keeps activations at half the size, and leaves the fused matrix of matmul
/// alone.
TEST(Precision, Bf16KeepsActivationsAtHalfTheSize) {
  const Context before = context();
  const auto rounded = [](const Tensor& t) { return t.cast(DType::bf16).cast(DType::f32); };
  const Tensor x = fill("x", {4, 7, 6}, -1, 1), w = fill("w", {6, 6}, -1, 1);
  const auto run = [](const Tensor& from, const Tensor& weight) {
    const Variable input(from, true), v(weight, true);
    const Variable q = linear(input, v, {});
    const size_t kept = saved_memory(q).at("linear");
    attention_context(attention_scores(q, input, 2, 0.5), input, 2).backward(fill("gy", {4, 7, 6}, -1, 1));
    return std::tuple(q.data(), v.grad(), kept);
  };
  const auto [q, dw, kept] = run(x, w);
  const Tensor fused = matmul(Variable(w), Variable(w)).data();
  context().gemm = MathMode::bf16;
  const auto [q16, dw16, kept16] = run(x, w);
  EXPECT_EQ(kept - kept16, size_t(2 * x.numel()));
  EXPECT_TRUE(equal_bits(q16, std::get<0>(run(rounded(x), rounded(w)))));
  EXPECT_FALSE(equal_bits(q16, q));
  EXPECT_EQ(difference(q16, q, {.relative = 1e-2}), "");
  EXPECT_EQ(difference(dw16, dw, {.relative = 2e-2}), "");
  EXPECT_TRUE(equal_bits(matmul(Variable(w), Variable(w)).data(), fused));
  context().gemm = MathMode::f32;
  EXPECT_TRUE(equal_bits(q16, std::get<0>(run(rounded(x), rounded(w)))));
  context() = before;
}

struct CodedRun {
  Tensor y, dx, dw;
};

struct Pass final : Node {
  const char* name() const override { return "pass"; }
  void backward(const Tensor& gy, GradSink& gx) override { gx.add(0, gy); }
  void release() override {}
  std::vector<Tensor> saved() const override { return {}; }
};

/// Leaves with codes that still want gradients: straight-through from float leaves.
CodedRun run(const std::function<Variable(const Variable&, const Variable&)>& f, const Coded& a,
             const Coded& b, bool integer) {
  context().integer_products = integer;
  const Variable xa(a.dequantize(), true), xb(b.dequantize(), true);
  const Variable y = f(record(a, std::make_shared<Pass>(), {xa}), record(b, std::make_shared<Pass>(), {xb}));
  y.backward(fill("gy", y.shape(), 0, 1));
  context().integer_products = true;
  return {y.data(), xa.grad(), xb.grad()};
}

/// Forward and both gradients of every coded product against the float oracle, and the same bits for 1, 2, 3
/// threads.
TEST(CodedProduct, AgreesWithFloatOracleAndThreads) {
  const struct {
    const char* name;
    std::function<Variable(const Variable&, const Variable&)> f;
    Coded a, b;
  } ops[] = {
      {"linear", [](const Variable& a, const Variable& b) { return linear(a, b, Variable{}); },
       make_codes("x", {2, 9, 48}, 4, true, false, 0.1), make_codes("w", {20, 48}, 4, true, true, 0)},
      {"scores", [](const Variable& a, const Variable& b) { return attention_scores(a, b, 3, 0.25); },
       make_codes("q", {2, 9, 48}, 4, true, false, 0.1), make_codes("k", {2, 9, 48}, 3, true, false, -0.2)},
      {"context", [](const Variable& a, const Variable& b) { return attention_context(a, b, 3); },
       make_codes("p", {2, 3, 9, 9}, 8, false, false, 0), make_codes("v", {2, 9, 48}, 8, true, false, 0.3)},
      {"linear, scales of tokens and rows",
       [](const Variable& a, const Variable& b) { return linear(a, b, {}); },
       along(make_codes("x", {2, 9, 48}, 4, true, false, 0), -2, true),
       halves(along(make_codes("w", {20, 48}, 4, true, true, 0), -2, false))},
      {"scores, scales of tokens",
       [](const Variable& a, const Variable& b) { return attention_scores(a, b, 3, 0.25); },
       along(make_codes("q", {2, 9, 48}, 4, true, false, 0), -2, true),
       along(make_codes("k", {2, 9, 48}, 4, true, false, 0), -2, true)},
      {"scores, shared queries",
       [](const Variable& a, const Variable& b) { return attention_scores(a, b, 3, 0.25); },
       along(make_codes("q", {2, 9, 48}, 2, true, false, 0), -2, true),
       along(make_codes("k", {2, 3, 9, 48}, 2, true, false, 0), -2, true)},
      {"context, scales of queries and channels",
       [](const Variable& a, const Variable& b) { return attention_context(a, b, 3); },
       along(make_codes("p", {2, 3, 9, 9}, 4, false, false, 0), -2, false),
       along(make_codes("v", {2, 9, 48}, 4, true, false, 0), -1, true)},
  };
  for (const auto& op : ops) {
    const CodedRun oracle = run(op.f, op.a, op.b, false);
    for (int threads : {1, 2, 3}) {
      set_threads(threads);
      const CodedRun r = run(op.f, op.a, op.b, true);
      expect_close_to_largest(r.y, oracle.y, 1e-6, std::string(op.name) + " y");
      expect_close_to_largest(r.dx, oracle.dx, 1e-6, std::string(op.name) + " da");
      expect_close_to_largest(r.dw, oracle.dw, 1e-6, std::string(op.name) + " db");
      static std::map<std::string, CodedRun> first;
      const CodedRun& f = first.emplace(op.name, r).first->second;
      EXPECT_TRUE(equal_bits(r.y, f.y) && equal_bits(r.dx, f.dx) && equal_bits(r.dw, f.dw))
          << op.name << " " << threads;
    }
    set_threads(0);
  }
}

/// Outputs together have the values and, in backward by digits or parts, the gradients of one after the
/// other, also where one is asked for again before the others and one by one.
TEST(CodedProduct, OutputsTogetherAreThoseOneByOne) {
  const Context before = context();
  const Coded x = along(make_codes("x", {2, 9, 48}, 4, true, false, 0), -2, true),
              w = make_codes("w", {60, 48}, 4, true, true, 0);
  const Tensor bias = fill("b", {60}, -1, 1);
  for (const BackwardProducts kind :
       {BackwardProducts::f32, BackwardProducts::int8x3, BackwardProducts::bf16x2}) {
    context().backward = kind;
    const auto results = [&](bool together) {
      const Variable xa(x.dequantize(), true), wa(w.dequantize(), true), b(bias, true);
      const Variable xc = record(x, std::make_shared<Pass>(), {xa}),
                     wc = record(w, std::make_shared<Pass>(), {wa});
      std::vector<Variable> y;
      if (together)
        y = linear_outputs(xc, std::array{LinearLayer{wc, b, 3}});
      else
        for (int64_t i = 0; i < 3; ++i)
          y.push_back(linear(xc, slice(wc, 0, 20 * i, 20 * i + 20), slice(b, 0, 20 * i, 20 * i + 20)));
      for (const size_t i : {2, 0, 1}) {
        SavedValue again;
        again.set(y[i]);
        EXPECT_TRUE(equal_bits(again.get("test", 0), y[i].data()));
      }
      const Variable all = joined(y);
      all.backward(fill("gy", all.shape(), -1, 1));
      return std::vector<Tensor>{all.data(), xa.grad(), wa.grad(), b.grad()};
    };
    const std::vector<Tensor> one = results(true), three = results(false);
    for (size_t i = 0; i < one.size(); ++i) {
      if (kind == BackwardProducts::f32 && i == 1)
        EXPECT_EQ(difference(one[i], three[i], {.relative = 1e-5, .absolute = 1e-6}),
                  "");  // added in the product
      else
        EXPECT_TRUE(equal_bits(one[i], three[i])) << i;
    }
  }
  context() = before;
}

/// Coded operands are kept as bytes.
TEST(CodedProduct, KeepsCodesForBackward) {
  const Coded x = make_codes("x", {64, 192}, 4, true, false, 0),
              w = make_codes("w", {96, 192}, 4, true, true, 0);
  const Variable leaf(Tensor::zeros({96}), true);
  const auto bytes = saved_memory(linear(Variable(x), Variable(w), leaf));
  size_t sum = 0;
  for (const auto& [op, b] : bytes) sum += b;
  EXPECT_LE(sum, size_t(64 * 192 + 96 * 192 + 64));
}

/// A linear layer of floats takes its bias gradient from the library's product: one kernel and no sum of
/// ours.
TEST(LinearCuda, BiasGradientComesWithTheProduct) {
  if (!cuda_present() || !counts_device_calls()) GTEST_SKIP() << "no emulated CUDA device";
  const Device gpu{Device::Kind::cuda, 0};
  const auto backward = [&](bool library, bool bias, Tensor& db) {
    context().library_products = library;
    const Variable x(fill("x", {300, 24}, 0, 1).to(gpu)), w(fill("w", {16, 24}, 0, 1).to(gpu), true),
        b(Tensor::zeros({16}, DType::f32, gpu), true);
    const Variable y = linear(x, w, bias ? b : Variable{});
    const Tensor gy = fill("gy", {300, 16}, 0, 1).to(gpu);
    const DeviceCalls before = device_calls();
    y.backward(gy);
    context().library_products = true;
    if (bias) db = b.grad().to(Device{});
    return device_calls(before).launches;
  };
  Tensor own, library, none;
  backward(false, true, own);
  const int64_t with = backward(true, true, library), without = backward(true, false, none);
  EXPECT_EQ(with, without);
  EXPECT_FALSE(equal_bits(own, library));
  EXPECT_EQ(difference(library, own, {.relative = 1e-5, .absolute = 1e-4}), "");
}

}  // namespace
}  // namespace lowbit
