#include "tensor/engine/gemm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "tensor/core/thread_pool.h"
#include "tests/tensor/engine/gemm_support.h"

namespace lowbit {
namespace {

using test::IsaGuard;

Tensor random_tensor(const Shape& s, uint32_t seed, DType t = DType::f32) {
  std::mt19937 gen(seed);
  std::normal_distribution<double> d;
  Tensor x = Tensor::empty(s, t);
  for (int64_t i = 0; i < x.numel(); ++i) {
    if (t == DType::f32)
      x.data<float>()[i] = float(d(gen));
    else
      x.data<double>()[i] = d(gen);
  }
  return x;
}

double at(const Tensor& t, std::initializer_list<int64_t> index) {
  const View v = t.view();
  int64_t at = 0;
  int d = 0;
  for (const int64_t i : index) at += i * v.stride[d++];
  switch (v.dtype) {
    case DType::f32:
      return v.as<float>()[at];
    case DType::f64:
      return v.as<double>()[at];
    default:
      return NAN;
  }
}

/// |out − Σ a·b| ≤ 4 · eps · sqrt(K) · Σ|a·b| for matrices.
void expect_product(const Tensor& out, const Tensor& a, const Tensor& b, double alpha = 1,
                    const Tensor& bias = {}, double beta = 0, const Tensor& old = {}) {
  const int64_t m = a.size(0), n = b.size(1), k = a.size(1);
  const double eps = out.dtype() == DType::f32 ? 0x1p-24 : 0x1p-53;
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double y = 0, size = 0;
      for (int64_t l = 0; l < k; ++l) {
        const double p = at(a, {i, l}) * at(b, {l, j});
        y += p, size += std::abs(p);
      }
      y *= alpha, size *= std::abs(alpha);
      if (beta != 0) y += beta * at(old, {i, j}), size += std::abs(beta * at(old, {i, j}));
      if (bias.defined()) y += at(bias, {j}), size += std::abs(at(bias, {j}));
      const double bound = 4 * eps * std::sqrt(double(std::max<int64_t>(k, 1))) * size;
      ASSERT_NEAR(at(out, {i, j}), y, bound) << m << "x" << n << "x" << k << " at " << i << "," << j;
    }
}

constexpr int64_t kSizes[][3] = {{1, 1, 1},     {1, 1, 0},      {3, 5, 0},     {1, 33, 7},
                                 {31, 1, 33},   {13, 31, 4},    {14, 32, 8},   {15, 33, 9},
                                 {17, 16, 100}, {29, 48, 383},  {33, 65, 384}, {8, 17, 385},
                                 {28, 40, 777}, {2, 100, 1200}, {197, 64, 30}, {40, 197, 65}};

TEST(Gemm, MatchesTripleLoopForAllLayouts) {
  for (const auto& [m, n, k] : kSizes)
    for (int layout = 0; layout < 8; ++layout) {
      const Tensor a = layout & 1 ? random_tensor({k, m}, 1).transpose(0, 1) : random_tensor({m, k}, 1);
      const Tensor b = layout & 2 ? random_tensor({n, k}, 2).transpose(0, 1) : random_tensor({k, n}, 2);
      Tensor c = layout & 4 ? Tensor::full({n, m}, NAN).transpose(0, 1) : Tensor::full({m, n}, NAN);
      gemm(c, a, b);
      expect_product(c, a, b);
    }
}

TEST(Gemm, StridedOperandsAndResult) {
  const int64_t m = 30, n = 45, k = 401;
  const Tensor a = random_tensor({m, 2, k, 3}, 1).select(3, 1).select(1, 1);
  const Tensor b = random_tensor({k, 2, n, 2}, 2).select(3, 0).select(1, 1);
  Tensor store = Tensor::full({m, 3, n, 2}, 7);
  Tensor c = store.select(3, 1).select(1, 2);
  const Tensor bias = random_tensor({n}, 3);
  gemm(c, a, b, bias, 0.5);
  expect_product(c, a, b, 0.5, bias);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) ASSERT_EQ(at(store, {i, 1, j, 0}), 7);
}

TEST(Gemm, AlphaBetaBias) {
  for (const int64_t k : {5, 384, 900})
    for (const double beta : {0.0, 1.0, -0.5})
      for (const bool with_bias : {false, true}) {
        const Tensor a = random_tensor({33, k}, 1), b = random_tensor({k, 50}, 2),
                     old = random_tensor({33, 50}, 3);
        const Tensor bias = with_bias ? random_tensor({50}, 4) : Tensor{};
        Tensor c = old.clone();
        gemm(c, a, b, bias, -1.25, beta);
        expect_product(c, a, b, -1.25, bias, beta, old);
      }
}

TEST(Gemm, BetaZeroDoesNotReadTheResult) {
  const Tensor a = random_tensor({20, 800}, 1), b = random_tensor({800, 20}, 2);
  Tensor c = Tensor::full({20, 20}, NAN);
  gemm(c, a, b);
  expect_product(c, a, b);
}

/// Definition of the header, element by element.
float chain(const Tensor& a, const Tensor& b, int64_t i, int64_t j, float alpha) {
  const int64_t k = a.size(1), block = gemm_k_block(k);
  float c = 0;
  for (int64_t k0 = 0; k0 < k; k0 += block) {
    float s = 0;
    for (int64_t l = k0; l < std::min(k, k0 + block); ++l)
      s = std::fma(float(at(a, {i, l})), float(at(b, {l, j})), s);
    c = k0 == 0 ? alpha * s : std::fma(alpha, s, c);
  }
  return c;
}

TEST(Gemm, BitsFollowTheContractForEveryIsaAndThreadCount) {
  for (const auto& [m, n, k] : kSizes) {
    const Tensor a = random_tensor({m, k}, 5), b = random_tensor({n, k}, 6).transpose(0, 1);
    Tensor expected = Tensor::empty({m, n});
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j) expected.data<float>()[i * n + j] = chain(a, b, i, j, 0.3f);
    test::for_each_isa_and_threads([&] {
      Tensor c = Tensor::empty({m, n});
      gemm(c, a, b, {}, double(0.3f));
      ASSERT_TRUE(equal_bits(c, expected)) << m << "x" << n << "x" << k;
    });
  }
}

TEST(Gemm, LargeProductsHaveTheSameBitsForEveryIsaAndThreadCount) {
  for (const auto& [m, n, k] :
       {std::array<int64_t, 3>{197, 192, 768}, {192, 576, 1576}, {10, 1000, 192}, {640, 70, 500}}) {
    const Tensor a = random_tensor({k, m}, 7).transpose(0, 1), b = random_tensor({k, n}, 8),
                 old = random_tensor({m, n}, 9);
    Tensor first;
    test::for_each_isa_and_threads([&] {
      Tensor c = old.clone();
      gemm(c, a, b, {}, 1, 1);
      if (!first.defined()) first = c;
      ASSERT_TRUE(equal_bits(c, first)) << m << "x" << n << "x" << k;
    });
  }
}

TEST(Gemm, BatchesOfHeadsEqualSingleProducts) {
  const int64_t batch = 3, tokens = 37, heads = 4, d = 24;
  const Tensor qkv = random_tensor({batch, tokens, 3, heads, d}, 1);
  const Tensor q = qkv.select(2, 0).permute({0, 2, 1, 3}), k = qkv.select(2, 1).permute({0, 2, 1, 3});
  const Tensor v = qkv.select(2, 2).permute({0, 2, 1, 3});
  Tensor single_scores = Tensor::empty({batch, heads, tokens, tokens});
  Tensor single_out = Tensor::empty({batch, tokens, heads, d});
  for (int64_t i = 0; i < batch; ++i)
    for (int64_t h = 0; h < heads; ++h) {
      Tensor s = single_scores.select(0, i).select(0, h);
      gemm(s, q.select(0, i).select(0, h), GemmInput(k.select(0, i).select(0, h)).t(), {}, 0.25);
      Tensor o = single_out.permute({0, 2, 1, 3}).select(0, i).select(0, h);
      gemm(o, s, v.select(0, i).select(0, h));
    }
  test::for_each_isa_and_threads([&] {
    const Tensor scores = matmul(q, GemmInput(k).t(), {}, 0.25);
    ASSERT_TRUE(equal_bits(scores, single_scores));
    Tensor out = Tensor::empty({batch, tokens, heads, d});
    Tensor by_head = out.permute({0, 2, 1, 3});
    gemm(by_head, scores, v);
    ASSERT_TRUE(equal_bits(out, single_out));
  });
  expect_product(single_scores.select(0, 2).select(0, 1), q.select(0, 2).select(0, 1),
                 k.select(0, 2).select(0, 1).transpose(0, 1), 0.25);
}

TEST(Gemm, BroadcastsLeadingDimensions) {
  const Tensor a = random_tensor({2, 1, 9, 20}, 1), b = random_tensor({3, 20, 11}, 2);
  const Tensor c = matmul(a, b);
  ASSERT_EQ(c.shape(), (Shape{2, 3, 9, 11}));
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 3; ++j)
      expect_product(c.select(0, i).select(0, j), a.select(0, i).select(0, 0), b.select(0, j));
  const Tensor w = random_tensor({20, 11}, 3);
  const Tensor x = random_tensor({2, 3, 9, 20}, 4), y = matmul(x, w), flat = matmul(x.reshape({54, 20}), w);
  EXPECT_TRUE(equal_bits(y.reshape({54, 11}), flat));
}

TEST(Gemm, CodesAreDequantizedWhilePacking) {
  const int64_t m = 45, n = 70, k = 400;
  for (const bool is_signed : {false, true})
    for (const int axis : {Coded::kPerTensor, -1, -2})
      for (const int offset : {0, 1, 2})
        for (const double shift : {0.0, 0.5, -128.0}) {
          const Coded a = test::random_coded({m, k}, is_signed, is_signed ? -128 : 0, is_signed ? 127 : 255,
                                             axis, offset, shift, 1);
          const Coded w = test::random_coded({n, k}, is_signed, is_signed ? -8 : 0, is_signed ? 7 : 15, axis,
                                             offset, shift, 2);
          const Tensor g = random_tensor({m, n}, 3);
          test::for_each_isa_and_threads(
              [&] {
                ASSERT_TRUE(equal_bits(matmul(a, GemmInput(w).t()),
                                       matmul(a.dequantize(), GemmInput(w.dequantize()).t())));
                ASSERT_TRUE(equal_bits(matmul(g, w), matmul(g, w.dequantize())));
                ASSERT_TRUE(
                    equal_bits(matmul(GemmInput(g).t(), a), matmul(GemmInput(g).t(), a.dequantize())));
                ASSERT_TRUE(
                    equal_bits(matmul(GemmInput(a).t(), g), matmul(GemmInput(a.dequantize()).t(), g)));
              },
              {1, 2});
        }
}

TEST(Gemm, Float64) {
  for (const auto& [m, n, k] : kSizes) {
    const Tensor a = random_tensor({k, m}, 1, DType::f64).transpose(0, 1),
                 b = random_tensor({k, n}, 2, DType::f64);
    const Tensor bias = random_tensor({n}, 3, DType::f64);
    expect_product(matmul(a, b, bias, 0.7), a, b, 0.7, bias);
  }
}

TEST(Gemm, Misuse) {
  const Tensor a = Tensor::zeros({3, 4}), b = Tensor::zeros({5, 6}), d = Tensor::zeros({4, 6}, DType::f64);
  const auto message = [](auto f) -> std::string {
    try {
      f();
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  };
  EXPECT_NE(
      message([&] { matmul(a, b); }).find("columns of a must equal rows of b (got [3, 4] f32 cpu and [5, 6]"),
      std::string::npos);
  EXPECT_NE(message([&] { matmul(a, d); }).find("operands and output must all be f32 or all f64"),
            std::string::npos);
  EXPECT_NE(message([&] {
              matmul(a, Tensor::zeros({4, 6}), Tensor::zeros({5}));
            }).find("bias must be"),
            std::string::npos);
  EXPECT_NE(message([&] { matmul(Tensor::zeros({4}), d); }).find("2 to 5 dimensions"), std::string::npos);
  EXPECT_NE(message([&] {
              matmul(Tensor::zeros({2, 3, 4}), Tensor::zeros({3, 4, 6}));
            }).find("broadcast"),
            std::string::npos);
  Tensor out = Tensor::zeros({3, 5});
  EXPECT_NE(message([&] {
              gemm(out, a, Tensor::zeros({4, 6}));
            }).find("output must be [3, 6]"),
            std::string::npos);
  EXPECT_NE(message([] { set_isa(current_isa()); }).find("no error"), std::string::npos);
}

}  // namespace
}  // namespace lowbit
