// Products of rounded operands and of gradients cut into bf16 numbers (GemmMode), on the CPU.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "tensor/engine/gemm_operand.h"
#include "tensor/engine/gemm_parts.h"
#include "tests/tensor/engine/gemm_support.h"

namespace lowbit {
namespace {

using test::error_against;
using test::exact_product;
using test::for_each_isa_and_threads;
using test::gaussian;
using test::random_coded;

Tensor rounded(const Tensor& t, MathMode m) {
  Tensor r = t.packed().clone();
  for (int64_t i = 0; i < r.numel(); ++i) {
    float& x = r.data<float>()[i];
    x = m == MathMode::bf16 ? float(bf16(x)) : m == MathMode::tf32 ? round_tf32(x) : x;
  }
  return r;
}

TEST(GemmModes, Tf32KeepsTenBitsAndRoundsHalfToEven) {
  const auto bits = [](float x) { return float_bits(round_tf32(x)); };
  EXPECT_EQ(bits(1.f), 0x3f800000u);
  EXPECT_EQ(bits(bits_float(0x3f801000u)), 0x3f800000u);  // a tie, to the even neighbour below
  EXPECT_EQ(bits(bits_float(0x3f803000u)), 0x3f804000u);  // a tie, to the even neighbour above
  EXPECT_EQ(bits(bits_float(0x3f801001u)), 0x3f802000u);
  EXPECT_EQ(bits(bits_float(0xbfffffffu)), 0xc0000000u);
  EXPECT_EQ(bits(bits_float(0x7f7fffffu)), 0x7f800000u);
  EXPECT_EQ(bits(INFINITY), 0x7f800000u);
  EXPECT_TRUE(std::isnan(round_tf32(NAN)));
}

/// A product in a mode is the f32 product of the operands rounded before, whatever their layout.
TEST(GemmModes, RoundOperandsAndNothingElse) {
  const Tensor bias = gaussian({33}, 3);
  for (const MathMode mode : {MathMode::f32, MathMode::tf32, MathMode::bf16})
    for (int layout = 0; layout < 4; ++layout)
      for (const int64_t k : {int64_t{0}, int64_t{5}, int64_t{70}, int64_t{400}}) {
        SCOPED_TRACE(testing::Message() << "mode " << int(mode) << " layout " << layout << " k " << k);
        const Tensor a = gaussian(layout & 1 ? Shape{2, k, 17} : Shape{2, 17, k}, 1),
                     b = gaussian(layout & 2 ? Shape{33, k} : Shape{k, 33}, 2);
        const auto product = [&](const Tensor& x, const Tensor& y, const GemmMode& m) {
          Tensor c = Tensor::full({2, 17, 33}, 0.5);
          gemm(c, layout & 1 ? GemmInput(x).t() : GemmInput(x), layout & 2 ? GemmInput(y).t() : GemmInput(y),
               bias, -1.25, 1, m);
          return c;
        };
        const Tensor want = product(rounded(a, mode), rounded(b, mode), {});
        for_each_isa_and_threads([&] { EXPECT_TRUE(equal_bits(product(a, b, {.inputs = mode}), want)); },
                                 {1, 3});
        if (mode != MathMode::bf16) continue;  // operands that are bf16 already: no difference
        EXPECT_TRUE(equal_bits(product(a.cast(DType::bf16), b.cast(DType::bf16), {}), want));
        EXPECT_TRUE(equal_bits(product(a, b.cast(DType::bf16), {.inputs = mode}), want));
      }
}

TEST(GemmModes, DoubleProductsHaveNoMode) {
  const Tensor a = gaussian({4, 9}, 1).cast(DType::f64), b = gaussian({9, 3}, 2).cast(DType::f64);
  Tensor x = Tensor::empty({4, 3}, DType::f64), y = x.clone();
  gemm(x, a, b), gemm(y, a, b, {}, 1, 0, {.inputs = MathMode::bf16});
  EXPECT_EQ(0, std::memcmp(x.data<double>(), y.data<double>(), x.bytes()));
}

/// Three parts hold every bit of an f32, one the nearest bf16.
TEST(GemmModes, PartsAddUpToTheNumber) {
  const Tensor x = gaussian({7, 50}, 5);
  GemmArgs g;
  g.k = 50;
  const detail::OperandCopy cut =
      detail::copy_of(GemmInput(x).operand(0, true), g, 7, DType::bf16, 3, false, {});
  const auto part = [&](int p, int64_t i, int64_t k) {
    return float(static_cast<const bf16*>(cut.operand.data)[p * cut.part + i * cut.operand.stride.row + k]);
  };
  for (int64_t i = 0; i < 7; ++i)
    for (int64_t k = 0; k < 50; ++k) {
      const float v = x.data_const<float>()[i * 50 + k];
      EXPECT_EQ(part(0, i, k), float(bf16(v)));
      EXPECT_EQ(double(part(0, i, k)) + double(part(1, i, k)) + double(part(2, i, k)), double(v));
      EXPECT_LE(std::fabs(v - part(0, i, k) - part(1, i, k)), 0x1p-16f * std::fabs(v));
    }
}

/// The error of each mode against float64, as docs/performance.md states it: dX = G·W and dW = Gᵀ·X for
/// normal and for heavy-tailed gradients. Each bound is missed by the mode with one part less.
TEST(GemmModes, GradientsStayWithinTheStatedDistance) {
  const double bound[] = {0, 3e-3, 6e-6, 1e-6};
  for (const bool heavy : {false, true})
    for (const int64_t tokens : {192, 1576}) {
      SCOPED_TRACE(testing::Message() << "tokens " << tokens << " heavy " << heavy);
      Tensor g = gaussian({tokens, 96}, 16);
      const Tensor spread = gaussian({tokens, 96}, 17);
      for (int64_t i = 0; heavy && i < g.numel(); ++i)
        g.data<float>()[i] *= std::exp(1.5f * spread.data_const<float>()[i]);
      const Coded w = random_coded({96, 40}, true, -8, 7, -2, 0, 0.5, 18);
      const Coded x = random_coded({tokens, 40}, false, 0, 255, -2, 2, -128, 19);
      const Tensor dx = exact_product(g, w.dequantize()),
                   dw = exact_product(g.transpose(0, 1).packed(), x.dequantize());
      for (int parts = 1; parts <= 3; ++parts) {
        SCOPED_TRACE(parts);
        Tensor y = Tensor::full({tokens, 40}, NAN), z = Tensor::full({96, 40}, NAN),
               turned = Tensor::full({40, 96}, NAN);
        gemm(y, g, w, {}, 1, 0, {.parts = parts});
        gemm(z, GemmInput(g).t(), x, {}, 1, 0, {.parts = parts});
        gemm(turned, GemmInput(x).t(), g, {}, 1, 0, {.parts = parts});
        for (const double e : {error_against(y, dx), error_against(z, dw)}) {
          EXPECT_LT(e, bound[parts]);
          EXPECT_GT(e, parts < 3 ? bound[parts] / 100 : 0);
        }
        EXPECT_LT(error_against(turned.transpose(0, 1).packed(), dw), bound[parts]);
      }
    }
}

/// The definition of gemm_parts.h in full: the parts by hand, the products by the plain kernel, scale of the
/// lines and offset afterwards.
TEST(GemmModes, PartsFollowTheirDefinition) {
  struct {
    const char* name;
    int axis, offset;
    double shift;
  } const forms[] = {{"one scale", Coded::kPerTensor, 0, 0}, {"scale along k", -2, 0, 0.5},
                     {"scale of the lines", -1, 0, -3},      {"scale and offset of the lines", -1, 2, 0},
                     {"scale along k, offset", -2, 2, -8},   {"one offset", Coded::kPerTensor, 1, 0}};
  const int64_t m = 21, n = 30, k = 300;
  for (const auto& f : forms) {
    SCOPED_TRACE(f.name);
    const Tensor g = gaussian({m, k}, 1);
    const Coded c = random_coded({k, n}, true, -8, 7, f.axis, f.offset, f.shift, 2);
    const auto scale = [&](int64_t i, int64_t j) {
      return c.scale.data_const<float>()[f.axis == -2 ? i : f.axis == -1 ? j : 0];
    };
    Tensor codes = Tensor::empty({k, n}), parts[2] = {Tensor::empty({m, k}), Tensor::empty({m, k})};
    for (int64_t i = 0; i < k; ++i)
      for (int64_t j = 0; j < n; ++j)
        codes.data<float>()[i * n + j] = float(c.codes.data_const<int8_t>()[i * n + j]) + float(f.shift);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < k; ++j) {
        const float x = g.data_const<float>()[i * k + j], v = f.axis == -1 ? x : scale(j, 0) * x;
        parts[0].data<float>()[i * k + j] = float(bf16(v));
        parts[1].data<float>()[i * k + j] = float(bf16(v - float(bf16(v))));
      }
    Tensor want = Tensor::full({m, n}, NAN);
    gemm(want, parts[1], codes, {}, 0.7);
    gemm(want, parts[0], codes, {}, 0.7, 1);
    for (int64_t i = 0; i < m; ++i) {
      double d = 0;
      for (int64_t from = 0; from < k; from += 256) {
        double block = 0;
        for (int64_t j = from; j < std::min(k, from + 256); ++j) block += g.data_const<float>()[i * k + j];
        d += block;
      }
      for (int64_t j = 0; j < n; ++j) {
        double y = want.data<float>()[i * n + j];
        if (f.axis == -1) y *= scale(0, j);
        if (f.offset) y += 0.7 * d * c.offset.data_const<float>()[f.offset == 2 ? j : 0];
        want.data<float>()[i * n + j] = float(y);
      }
    }
    for_each_isa_and_threads([&] {
      Tensor y = Tensor::full({m, n}, NAN);
      gemm(y, g, c, {}, 0.7, 0, {.parts = 2});
      EXPECT_TRUE(equal_bits(y, want));
    });
  }
}

/// Where codes would not be exact in bf16, or where there is more than a product, floats are multiplied.
TEST(GemmModes, WhatHasNoPartsIsAFloatProduct) {
  const Tensor g = gaussian({5, 40}, 1), bias = gaussian({6}, 3);
  const auto same = [&](const GemmInput& codes, const Tensor& with) {
    Tensor x = Tensor::empty({5, 6}), y = Tensor::empty({5, 6});
    gemm(x, g, codes, with), gemm(y, g, codes, with, 1, 0, {.parts = 1});
    return std::memcmp(x.data<float>(), y.data<float>(), x.bytes()) == 0;
  };
  EXPECT_TRUE(same(random_coded({40, 6}, false, 0, 255, Coded::kPerTensor, 0, 0.5, 2), {}));
  EXPECT_TRUE(same(random_coded({40, 6}, false, 0, 255, Coded::kPerTensor, 0, 0.25, 2), {}));
  EXPECT_TRUE(same(random_coded({40, 6}, false, 0, 255, Coded::kPerTensor, 0, 2, 2), {}));
  EXPECT_TRUE(same(random_coded({40, 6}, true, -8, 7, Coded::kPerTensor, 0, 0, 2), bias));
  EXPECT_TRUE(same(gaussian({40, 6}, 2), {}));
  EXPECT_FALSE(same(random_coded({40, 6}, false, 0, 255, Coded::kPerTensor, 0, 1, 2), {}));
}

}  // namespace
}  // namespace lowbit
