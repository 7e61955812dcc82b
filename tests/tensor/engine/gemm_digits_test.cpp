#include "tensor/engine/gemm_digits.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "tests/tensor/engine/gemm_support.h"

namespace lowbit {
namespace {

using test::error_against;
using test::exact_product;
using test::for_each_isa_and_threads;
using test::gaussian;
using test::random_coded;

struct Case {
  const char* name;
  int64_t m, n, k;
  bool is_signed;
  int lo, hi, axis, offset;
  double shift;
};

/// dX = G·W: the scale of W may run along the contracted rows.
const Case input_gradients[] = {{"weights", 45, 70, 192, true, -8, 7, Coded::kPerTensor, 0, 0},
                                {"8 bits", 17, 33, 67, true, -128, 127, Coded::kPerTensor, 0, 0},
                                {"unsigned 8 bits", 17, 33, 67, false, 0, 255, Coded::kPerTensor, 0, -128},
                                {"no zero level", 64, 64, 100, true, -2, 1, -2, 0, 0.5},
                                {"scale along columns", 3, 16, 5, true, -8, 7, -1, 0, 0},
                                {"offset along columns", 33, 40, 64, false, 0, 15, Coded::kPerTensor, 2, -8},
                                {"scale of rows, offset along columns", 45, 40, 67, false, 0, 15, -2, 2, -8},
                                {"one", 1, 1, 1, false, 0, 3, Coded::kPerTensor, 0, 0}};

TEST(GemmDigits, InputGradientIsAsExactAsFloats) {
  for (const Case& c : input_gradients) {
    SCOPED_TRACE(c.name);
    const Tensor g = gaussian({c.m, c.k}, 1);
    const Coded w = random_coded({c.k, c.n}, c.is_signed, c.lo, c.hi, c.axis, c.offset, c.shift, 2);
    const Tensor truth = exact_product(g, w.dequantize());
    Tensor first[4];
    for_each_isa_and_threads([&] {
      for (const int digits : {2, 3}) {
        Tensor y = Tensor::full({c.m, c.n}, NAN);
        gemm(y, g, w, {}, 1, 0, {.digits = digits});
        EXPECT_LT(error_against(y, truth), digits == 3 ? 1e-6 : 1e-4);
        if (first[digits].defined())
          EXPECT_EQ(0, std::memcmp(y.data<float>(), first[digits].data<float>(), y.bytes()));
        else
          first[digits] = y;
      }
    });
  }
}

/// dW = Gᵀ·X and, with the roles exchanged, (Xᵀ·G)ᵀ: the floats are columns.
TEST(GemmDigits, WeightGradientIsAsExactAsFloats) {
  for (const int64_t tokens : {1, 6, 197, 1000})
    for (const bool per_token : {false, true}) {
      SCOPED_TRACE(tokens);
      const int64_t n = 77, k = 50;
      const Tensor g = gaussian({tokens, n}, 3);
      const Coded x = random_coded({tokens, k}, false, 0, 15, per_token ? -2 : Coded::kPerTensor, 2, -8, 4);
      const Tensor truth = exact_product(g.cast(DType::f64).transpose(0, 1).packed(), x.dequantize());
      Tensor first;
      for_each_isa_and_threads([&] {
        Tensor y = Tensor::full({n, k}, NAN), transposed = Tensor::full({k, n}, NAN);
        gemm(y, GemmInput(g).t(), x, {}, 1, 0, {.digits = 3});
        gemm(transposed, GemmInput(x).t(), g, {}, 1, 0, {.digits = 3});
        EXPECT_LT(error_against(y, truth), 1e-6);
        const Tensor again = transposed.transpose(0, 1).packed();
        EXPECT_EQ(0, std::memcmp(y.data<float>(), again.data<float>(), y.bytes())) << "roles";
        if (first.defined())
          EXPECT_EQ(0, std::memcmp(y.data<float>(), first.data<float>(), y.bytes()));
        else
          first = y;
      });
    }
}

/// Gradients whose lines a few values dominate: normal · e^(1.5·normal), and normal with every 100th row a
/// hundred times larger. Float products and three digits stay within 1e-6 of float64.
TEST(GemmDigits, GradientsOfAnyShapeStayWithinTheStatedDistance) {
  const int64_t outputs = 768, inputs = 40;
  std::mt19937 gen(15);
  std::normal_distribution<float> normal;
  for (const char* kind : {"gauss", "heavy", "few rows"})
    for (const int64_t tokens : {192, 1576, 3000}) {
      SCOPED_TRACE(testing::Message() << kind << ", tokens " << tokens);
      const int64_t n = tokens > 192 ? 50 : outputs;
      Tensor g = gaussian({tokens, n}, 16);
      for (int64_t i = 0; i < g.numel() && *kind != 'g'; ++i)
        g.data<float>()[i] *= *kind == 'h' ? std::exp(1.5f * normal(gen)) : i / n % 100 == 7 ? 100.f : 1.f;
      const Coded w = random_coded({n, inputs}, true, -8, 7, Coded::kPerTensor, 0, 0, 17);
      const Coded x = random_coded({tokens, inputs}, false, 0, 15, Coded::kPerTensor, 0, -8, 18);
      const Tensor dx = exact_product(g, w.dequantize());
      const Tensor dw = exact_product(g.cast(DType::f64).transpose(0, 1).packed(), x.dequantize());
      Tensor first_dx, first_dw;
      for_each_isa_and_threads([&] {
        for (const int digits : {0, 3}) {
          Tensor y = Tensor::full({tokens, inputs}, NAN), z = Tensor::full({n, inputs}, NAN);
          gemm(y, g, w, {}, 1, 0, {.digits = digits}),
              gemm(z, GemmInput(g).t(), x, {}, 1, 0, {.digits = digits});
          EXPECT_LT(error_against(y, dx), 1e-6) << "dX, digits " << digits;
          EXPECT_LT(error_against(z, dw), 1e-6) << "dW, digits " << digits;
          if (digits == 0) continue;
          if (first_dx.defined()) {
            EXPECT_TRUE(equal_bits(y, first_dx));
            EXPECT_TRUE(equal_bits(z, first_dw));
          }
          first_dx = y, first_dw = z;
        }
      });
    }
}

/// Heads inside [B, N, H·D] on both sides, results written into such a window.
TEST(GemmDigits, BatchesOfHeads) {
  const int64_t b = 2, tokens = 37, heads = 3, d = 16;
  const Tensor g = gaussian({b, heads, tokens, tokens}, 5);
  Coded q = random_coded({b, tokens, heads * d}, false, 0, 15, Coded::kPerTensor, 0, -8, 6);
  const auto by_heads = [&](const Tensor& t) {
    return t.reshape({b, tokens, heads, d}).permute({0, 2, 1, 3});
  };
  q.codes = by_heads(q.codes);
  const Tensor truth = exact_product(g, q.dequantize());
  for_each_isa_and_threads([&] {
    Tensor y = Tensor::full({b, tokens, heads * d}, NAN), window = by_heads(y);
    gemm(window, g, q, {}, 1, 0, {.digits = 3});
    EXPECT_LT(error_against(window.packed(), truth), 1e-6);
    Tensor z = Tensor::full({b, tokens, heads * d}, NAN), columns = by_heads(z);
    gemm(columns, GemmInput(g.transpose(-2, -1).packed()).t(), q, {}, 1, 0, {.digits = 3});
    EXPECT_LT(error_against(columns.packed(), truth), 1e-6);
  });
}

/// G·Xᵀ with heads that have their own scales and offsets: both run along the contraction, or neither.
TEST(GemmDigits, ScalesAndOffsetsOfHeads) {
  const int64_t heads = 3, tokens = 37, d = 21;
  for (const int axis : {-1, -2}) {
    Coded v = random_coded({heads, tokens, d}, false, 0, 15, axis, 2, -8, 16);
    v.scale = gaussian({heads, v.codes.size(axis)}, 17), v.offset = gaussian({heads, d}, 18);
    const Tensor g = gaussian({heads, 18, d}, 19), h = gaussian({heads, 18, tokens}, 20);
    const Tensor x = v.dequantize(), truth_d = exact_product(g, x.transpose(-2, -1).packed()),
                 truth_t = exact_product(h, x);
    Tensor first_d, first_t;
    for_each_isa_and_threads([&] {
      Tensor yd = Tensor::full({heads, 18, tokens}, NAN), yt = Tensor::full({heads, 18, d}, NAN);
      gemm(yd, g, GemmInput(v).t(), {}, 1, 0, {.digits = 3});
      gemm(yt, h, v, {}, 1, 0, {.digits = 3});
      EXPECT_LT(error_against(yd, truth_d), 1e-6);
      EXPECT_LT(error_against(yt, truth_t), 1e-6);
      for (int64_t i = 0; i < heads; ++i) {  // a head by itself: the same bits
        Tensor one = Tensor::full({18, tokens}, NAN);
        gemm(one, g.select(0, i), GemmInput(v.group(i)).t(), {}, 1, 0, {.digits = 3});
        EXPECT_EQ(0, std::memcmp(one.data<float>(), yd.data<float>() + i * one.numel(), one.bytes()));
      }
      if (first_d.defined()) {
        EXPECT_EQ(0, std::memcmp(yd.data<float>(), first_d.data<float>(), yd.bytes()));
        EXPECT_EQ(0, std::memcmp(yt.data<float>(), first_t.data<float>(), yt.bytes()));
      }
      first_d = yd, first_t = yt;
    });
  }
}

TEST(GemmDigits, ExactForSmallIntegersAndZeros) {
  // powers of two times the largest value are fixed-point numbers themselves
  Tensor g = Tensor::zeros({3, 40});
  for (int64_t k = 0; k < 40; ++k) g.data<float>()[40 + k] = float(k % 5 - 2);
  const Coded w = random_coded({40, 9}, true, -8, 7, Coded::kPerTensor, 0, 0, 7);
  const Tensor truth = exact_product(g, w.dequantize());
  for_each_isa_and_threads([&] {
    Tensor y = Tensor::full({3, 9}, NAN);
    gemm(y, g, w, {}, 1, 0, {.digits = 3});
    for (int64_t j = 0; j < 9; ++j) {
      EXPECT_EQ(y.data<float>()[j], 0);
      EXPECT_NEAR(y.data<float>()[9 + j], truth.data_const<double>()[9 + j], 1e-5);
    }
  });
}

TEST(GemmDigits, NotFiniteStaysNotFinite) {
  const Coded w = random_coded({20, 33}, true, -8, 7, Coded::kPerTensor, 0, 0, 8);
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    Tensor g = gaussian({4, 20}, 9);
    g.data<float>()[2 * 20 + 7] = bad;
    for_each_isa_and_threads([&] {
      Tensor y = Tensor::zeros({4, 33});
      gemm(y, g, w, {}, 1, 0, {.digits = 3});
      for (int64_t i = 0; i < 4; ++i)
        for (int64_t j = 0; j < 33; ++j) EXPECT_EQ(std::isfinite(y.data<float>()[i * 33 + j]), i != 2);
    });
  }
}

/// What has no such form is a float product, with the same bits as without digits.
TEST(GemmDigits, OtherProductsStayFloat) {
  const Tensor g = gaussian({20, 30}, 10);
  const Tensor bias = gaussian({16}, 12);
  const Coded w = random_coded({16, 30}, true, -8, 7, Coded::kPerTensor, 0, 0, 13);
  const auto equal = [&](const GemmInput& b, const Tensor& bias_or_none) {
    Tensor x = Tensor::zeros({20, 16}), y = Tensor::zeros({20, 16});
    gemm(x, g, b, bias_or_none), gemm(y, g, b, bias_or_none, 1, 0, {.digits = 3});
    EXPECT_EQ(0, std::memcmp(x.data<float>(), y.data<float>(), x.bytes()));
  };
  equal(GemmInput(w).t(), bias);
  equal(GemmInput(gaussian({30, 16}, 14)), {});
}

}  // namespace
}  // namespace lowbit
