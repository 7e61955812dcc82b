#include "autograd/ops/conv2d.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "autograd/core/node.h"
#include "autograd/ops/batch_norm.h"
#include "tensor/core/context.h"
#include "tests/support/golden.h"
#include "tests/support/op_case.h"

namespace lowbit {
namespace {

using namespace test;
using In = std::span<const Variable>;

Variable zeros(const Shape& s) { return Variable(Tensor::zeros(s)); }

std::vector<InputSpec> inputs(const Shape& x, const Shape& w) {
  return {{.name = "x", .shape = x}, {.name = "w", .shape = w}, {.name = "b", .shape = {w[0]}}};
}

Function conv(ConvOptions o) {
  return [o](In v) { return conv2d(v[0], v[1], v[2], o); };
}

const bool cases = register_op_cases(
    "Conv2d",
    {{.name = "plain",
      .inputs = inputs({2, 4, 5, 3}, {4, 3, 3, 3}),
      .fn = conv({}),
      .parity = {Parity::Kind::gemm, 27},
      .sizes =
          [](int64_t n) {
            return inputs({1, 3, 3, n}, {2, n, 2, 2});
          },
      .misuse =
          {{"channels",
            [] {
              conv2d(zeros({1, 4, 4, 3}), zeros({4, 2, 3, 3}), {}, {});
            },
            "conv2d: x must be [B, H, W, C] and weight [O, C/1, K, K] with O a multiple of the groups (got "
            "x=[1, 4, 4, 3] f32 cpu, weight=[4, 2, 3, 3] f32 cpu)"},
           {"bias",
            [] {
              conv2d(zeros({1, 4, 4, 2}), zeros({4, 2, 3, 3}), zeros({3}), {});
            },
            "conv2d: bias must have one value per output (got bias=[3] f32 cpu, weight=[4, 2, 3, 3] f32 "
            "cpu)"},
           {"extent",
            [] {
              conv2d(zeros({1, 2, 4, 2}), zeros({4, 2, 3, 3}), {}, {});
            },
            "conv2d: the kernel must fit on the padded map (got x=[1, 2, 4, 2] f32 cpu, weight=[4, 2, 3, 3] "
            "f32 cpu)"},
           {"stride",
            [] {
              conv2d(zeros({1, 4, 4, 2}), zeros({4, 2, 3, 3}), {}, {.stride = 0});
            },
            "conv2d: stride and groups must be positive, padding not negative (got 0, 1, 0)"}}},
     {.name = "stem",
      .inputs = inputs({2, 5, 6, 3}, {4, 3, 3, 3}),
      .fn = conv({.stride = 2, .padding = 1}),
      .parity = {Parity::Kind::gemm, 36, 12544},
      .perf = {.inputs = inputs({4, 112, 112, 32}, {64, 32, 3, 3}), .flops = 2.0 * 4 * 56 * 56 * 64 * 288}},
     {.name = "groups",
      .inputs = inputs({2, 3, 4, 4}, {6, 2, 2, 2}),
      .fn = conv({.stride = 1, .padding = 1, .groups = 2}),
      .parity = {Parity::Kind::gemm, 40}},
     {.name = "depthwise",
      .inputs = inputs({2, 5, 5, 3}, {6, 1, 3, 3}),
      .fn =
          [](In v) { return conv2d(v[0], v[1], v[2], {.stride = 2, .padding = 1, .groups = v[0].size(3)}); },
      .parity = {Parity::Kind::gemm, 18, 784},
      .perf = {.inputs = inputs({4, 28, 28, 64}, {128, 1, 3, 3})}}});

/// The definition, in float64.
std::vector<double> direct(const Tensor& x, const Tensor& w, const ConvOptions& o) {
  const int64_t h = x.size(1), width = x.size(2), c = x.size(3), outputs = w.size(0), depth = w.size(1),
                k = w.size(2);
  const std::vector<float> xs = x.to_vector<float>(), ws = w.to_vector<float>();
  std::vector<double> y;
  for (int64_t b = 0; b < x.size(0); ++b)
    for (int64_t i = 0; i <= h + 2 * o.padding - k; i += o.stride)
      for (int64_t j = 0; j <= width + 2 * o.padding - k; j += o.stride)
        for (int64_t n = 0; n < outputs; ++n) {
          double sum = 0;
          for (int64_t d = 0; d < depth; ++d)
            for (int64_t ty = 0; ty < k; ++ty)
              for (int64_t tx = 0; tx < k; ++tx) {
                const int64_t row = i + ty - o.padding, column = j + tx - o.padding;
                if (row < 0 || column < 0 || row >= h || column >= width) continue;
                const int64_t channel = n / (outputs / o.groups) * depth + d;
                sum += double(xs[size_t(((b * h + row) * width + column) * c + channel)]) *
                       ws[size_t(((n * depth + d) * k + ty) * k + tx)];
              }
          y.push_back(sum);
        }
  return y;
}

TEST(Conv2d, EqualsItsDefinition) {
  for (const ConvOptions& o : {ConvOptions{}, {2, 1, 1}, {3, 2, 2}, {1, 0, 4}}) {
    const Tensor x = fill("x", {2, 7, 8, 4}, 0, 1), w = fill("w", {8, 4 / o.groups, 3, 3}, 0, 1);
    const std::vector<float> y = conv2d(Variable(x), Variable(w), {}, o).data().to_vector<float>();
    const std::vector<double> expected = direct(x, w, o);
    ASSERT_EQ(y.size(), expected.size());
    for (size_t i = 0; i < y.size(); ++i) EXPECT_NEAR(y[i], expected[i], 1e-5) << i;
  }
}

/// Where the build has a library for convolutions it computes all three products of floats, the same bits
/// each time; its order of summation shows that it did.
TEST(Conv2dCuda, LibraryComputesFloats) {
  if (!cuda_present()) GTEST_SKIP() << "no CUDA device";
  if (!conv_library_present()) GTEST_SKIP() << "built without cuDNN";
  const Context before = context();
  const auto run = [](const ConvOptions& o, bool library) {
    context().library_products = library;
    const Variable x(fill("x", {2, 9, 8, 8}, -1, 1).to(kGpu), true),
        w(fill("w", {12, 8 / o.groups, 3, 3}, -1, 1).to(kGpu), true);
    const Variable y = conv2d(x, w, {}, o);
    y.backward(fill("gy", y.shape(), -1, 1).to(kGpu));
    return std::array<Tensor, 3>{y.data().to(Device{}), x.grad().to(Device{}), w.grad().to(Device{})};
  };
  for (const ConvOptions& o : {ConvOptions{}, {2, 1, 1}, {1, 2, 4}}) {
    const auto own = run(o, false), library = run(o, true), again = run(o, true);
    for (size_t i = 0; i < own.size(); ++i) {
      EXPECT_FALSE(equal_bits(own[i], library[i])) << i;
      EXPECT_TRUE(equal_bits(library[i], again[i])) << i;
      EXPECT_EQ(difference(library[i], own[i], {.relative = 1e-5}), "") << i;
    }
  }
  context() = before;
}

/// Codes: an integer product, whose padding is the code of zero.
TEST(Conv2d, CodesGiveTheProductOfTheirValues) {
  for (const ConvOptions& o : {ConvOptions{2, 1, 1}, {2, 1, 4}}) {
    Coded x, w;
    x.codes = Tensor::empty({2, 7, 7, 4}, DType::u8),
    w.codes = Tensor::empty({8, 4 / o.groups, 3, 3}, DType::i8);
    for (int64_t i = 0; i < x.codes.numel(); ++i) x.codes.data<uint8_t>()[i] = uint8_t(i * 37 % 256);
    for (int64_t i = 0; i < w.codes.numel(); ++i) w.codes.data<int8_t>()[i] = int8_t(i * 91 % 256 - 128);
    x.scale = Tensor::full({1}, 0.03), w.scale = Tensor::full({1}, 0.007);
    x.shift = -128, w.lo = -128, w.hi = 127;
    const std::vector<float> y = conv2d(Variable(x), Variable(w), {}, o).data().to_vector<float>();
    const std::vector<double> expected = direct(x.dequantize(), w.dequantize(), o);
    double largest = 0;
    for (const double e : expected) largest = std::max(largest, std::fabs(e));
    ASSERT_EQ(y.size(), expected.size());
    for (size_t i = 0; i < y.size(); ++i) EXPECT_NEAR(y[i], expected[i], 1e-6 * largest) << i;
  }
}

std::vector<InputSpec> norm_inputs(const Shape& s) {
  return {{.name = "x", .shape = s, .lo = -1, .hi = 2},
          {.name = "gamma", .shape = {s[-1]}, .lo = 0.5, .hi = 1.5},
          {.name = "beta", .shape = {s[-1]}}};
}

Function norm(bool training) {
  return [training](In v) {
    Tensor mean = Tensor::full({v[0].size(-1)}, 0.3, v[0].dtype(), v[0].device());
    Tensor variance = Tensor::full({v[0].size(-1)}, 1.7, v[0].dtype(), v[0].device());
    return batch_norm(v[0], v[1], v[2], mean, variance, training, 0.1, 1e-5);
  };
}

const bool norms = register_op_cases(
    "BatchNorm",
    {{.name = "training",
      .inputs = norm_inputs({2, 3, 4, 5}),
      .fn = norm(true),
      .sizes =
          [](int64_t n) {
            return norm_inputs({7, n});
          },
      .misuse = {{"rows",
                  [] {
                    norm(true)(std::vector<Variable>{zeros({1, 3}), zeros({3}), zeros({3})});
                  },
                  "batch_norm: training needs more than one value per channel (got x=[1, 3] f32 cpu)"}},
      .perf = {.inputs = norm_inputs({4, 112, 112, 32})}},
     {.name = "evaluation", .inputs = norm_inputs({2, 3, 4, 5}), .fn = norm(false)}});

TEST(BatchNorm, RunningStatisticsFollowTheBatches) {
  const Variable gamma(Tensor::full({2}, 1)), beta(Tensor::zeros({2}));
  Tensor mean = Tensor::zeros({2}), variance = Tensor::full({2}, 1);
  const float values[] = {1, 10, 2, 10, 3, 40};  // channel 0: mean 2, unbiased variance 1; 1: 20, 300
  batch_norm(Variable(Tensor::from(std::span<const float>(values), {3, 2})), gamma, beta, mean, variance,
             true, 0.1, 1e-5);
  EXPECT_FLOAT_EQ(mean.data<float>()[0], 0.2F);
  EXPECT_FLOAT_EQ(mean.data<float>()[1], 2);
  EXPECT_FLOAT_EQ(variance.data<float>()[0], 1);
  EXPECT_FLOAT_EQ(variance.data<float>()[1], 30.9F);
}

}  // namespace
}  // namespace lowbit
