// Products of rounded operands, of parts, and by cuBLASLt on a GPU (GemmMode). Own kernels: the bits of the
// CPU. The library: within 4·ε·√K·(|A||B|) of float64 (docs/numerics.md, rule 7), tf32 within the rounding of
// its operands more, and the same bits each time.

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/op_case.h"
#include "tests/tensor/engine/gemm_support.h"

namespace lowbit {
namespace {

using test::error_against;
using test::exact_product;
using test::gaussian;
using test::kGpu;
using test::on_gpu;
using test::random_coded;

struct Size {
  int64_t m, n, k;
};
constexpr Size kSizes[] = {{1, 1, 1},   {2, 3, 0},     {17, 35, 5}, {65, 63, 66},
                           {16, 8, 32}, {9, 130, 400}, {3, 2, 4000}};
constexpr MathMode kModes[] = {MathMode::f32, MathMode::tf32, MathMode::bf16};

TEST(GemmModesCuda, RoundedOperandsEqualTheCpu) {
  if (!test::cuda_present()) GTEST_SKIP() << "no CUDA device";
  for (const Size& s : kSizes)
    for (const MathMode mode : kModes)
      for (int layout = 0; layout < 4; ++layout) {
        const Tensor a = gaussian(layout & 1 ? Shape{s.k, s.m} : Shape{s.m, s.k}, 1),
                     b = gaussian(layout & 2 ? Shape{s.n, s.k} : Shape{s.k, s.n}, 2),
                     bias = gaussian({s.n}, 3);
        const auto product = [&](const Tensor& x, const Tensor& y, const Tensor& with) {
          Tensor c = Tensor::full({s.m, s.n}, 0.25, DType::f32, x.device());
          gemm(c, layout & 1 ? GemmInput(x).t() : GemmInput(x), layout & 2 ? GemmInput(y).t() : GemmInput(y),
               with, 0.3, layout % 2, {.inputs = mode});
          return c.to(Device{});
        };
        ASSERT_TRUE(equal_bits(product(on_gpu(a), on_gpu(b), on_gpu(bias)), product(a, b, bias)))
            << s.m << "x" << s.n << "x" << s.k << " mode " << int(mode) << " layout " << layout;
        const Tensor a16 = a.cast(DType::bf16), b16 = b.cast(DType::bf16);
        ASSERT_TRUE(equal_bits(product(on_gpu(a16), on_gpu(b16), on_gpu(bias)), product(a16, b16, bias)));
      }
}

/// A result of bf16 is the one of f32, with the bias rounded before and the sum after.
TEST(GemmModes, RoundedResults) {
  for (const Size& s : kSizes)
    for (const MathMode mode : kModes)
      for (int layout = 0; layout < 4; ++layout) {
        SCOPED_TRACE(testing::Message()
                     << s.m << "x" << s.n << "x" << s.k << " mode " << int(mode) << " layout " << layout);
        const Tensor a = gaussian({s.m, s.k}, 1), b = gaussian({s.n, s.k}, 2),
                     bias = layout & 1 ? gaussian({s.n}, 3).cast(DType::bf16) : Tensor{};
        const auto product = [&](DType t, Device d) {
          const auto there = [d](const Tensor& x) { return x.defined() ? x.to(d) : x; };
          Tensor c = Tensor::empty(layout & 2 ? Shape{s.n, s.m} : Shape{s.m, s.n}, t, d);
          Tensor out = layout & 2 ? c.transpose(0, 1) : c;  // a result by columns
          const Tensor with = bias.defined() ? bias.cast(t) : bias;
          gemm(out, there(a), GemmInput(there(b)).t(), there(with), 0.3, 0, {.inputs = mode});
          return out.to(Device{}).packed();
        };
        const Tensor c = product(DType::bf16, Device{});
        ASSERT_TRUE(equal_bits(c, product(DType::f32, Device{}).cast(DType::bf16)));
        if (!test::cuda_present()) continue;
        ASSERT_TRUE(equal_bits(product(DType::bf16, kGpu), c));
      }
  Tensor c = Tensor::zeros({2, 3}, DType::bf16);
  EXPECT_THROW(gemm(c, gaussian({2, 4}, 1), gaussian({4, 3}, 2), {}, 1, 1), Error);
}

/// floats · codes and codes · floats, every place of scale and offset.
template <class F>
void for_each_gradient(F f) {
  uint32_t seed = 1;
  for (const Size& s : kSizes)
    for (int form = 0; form < 24; ++form) {
      if (s.m * s.n * s.k > 5000 && (form + int(s.m)) % 6 != 0) continue;
      const int axis = form % 3 == 0 ? Coded::kPerTensor : form % 3 == 1 ? -1 : -2;
      const Tensor g = gaussian(form & 2 ? Shape{2, s.k, s.m} : Shape{2, s.m, s.k}, seed++);
      const Coded c =
          random_coded(form & 4 ? Shape{2, s.n, s.k} : Shape{2, s.k, s.n}, form % 2 == 0, form % 2 ? 0 : -8,
                       form % 2 ? 255 : 7, axis, form / 8, form % 5 == 0 && form % 2 == 0 ? 0.5 : 0, seed++);
      SCOPED_TRACE(testing::Message() << s.m << "x" << s.n << "x" << s.k << " form " << form);
      f(g, c, form & 1, form & 2, form & 4);
      if (::testing::Test::HasFailure()) return;
    }
}

Tensor gradient(const Tensor& g, const Coded& c, bool codes_first, bool g_turned, bool c_turned,
                const GemmMode& mode) {
  GemmInput x = g_turned ? GemmInput(g).t() : GemmInput(g), y = c_turned ? GemmInput(c).t() : GemmInput(c);
  if (codes_first) {  // (g · c)ᵀ
    const GemmInput turned = x.t();
    x = y.t(), y = turned;
  }
  Tensor out = Tensor::full({2, x.rows(), y.cols()}, NAN, DType::f32, g.device());
  gemm(out, x, y, {}, 0.7, 0, mode);
  return out.to(Device{});
}

TEST(GemmModesCuda, PartsEqualTheCpu) {
  if (!test::cuda_present()) GTEST_SKIP() << "no CUDA device";
  for_each_gradient([](const Tensor& g, const Coded& c, bool first, bool g_turned, bool c_turned) {
    for (const int parts : {1, 2, 3})
      ASSERT_TRUE(equal_bits(gradient(on_gpu(g), on_gpu(c), first, g_turned, c_turned, {.parts = parts}),
                             gradient(g, c, first, g_turned, c_turned, {.parts = parts})))
          << "parts " << parts;
  });
}

Tensor magnitudes(const Tensor& t) {
  Tensor r = t.packed().clone();
  for (int64_t i = 0; i < r.numel(); ++i) r.data<float>()[i] = std::fabs(r.data<float>()[i]);
  return r;
}

/// c = alpha · a · b + beta · old (+ bias) within the class of the library.
void expect_in_class(const Tensor& c, const Tensor& a, const Tensor& b, const Tensor& old, const Tensor& bias,
                     double alpha, double beta, MathMode mode) {
  const auto seen = [mode](const Tensor& t) {
    return mode == MathMode::bf16 ? t.cast(DType::bf16).cast(DType::f32) : t;
  };
  const std::vector<double> product = exact_product(seen(a), seen(b)).to_vector<double>(),
                            sizes = exact_product(magnitudes(a), magnitudes(b)).to_vector<double>();
  const double k = double(a.size(-1)),
               each = 4 * 0x1p-23 * std::sqrt(k) + (mode == MathMode::tf32 ? 2.1e-3 : 0);
  const std::vector<float> got = c.to_vector<float>(), before = old.to_vector<float>();
  for (size_t i = 0; i < got.size(); ++i) {
    const double add = bias.defined() ? bias.data_const<float>()[i % size_t(bias.numel())] : 0,
                 want = alpha * product[i] + beta * before[i] + add,
                 scale = std::fabs(alpha) * sizes[i] * each +
                         4 * 0x1p-23 * (std::fabs(beta * before[i]) + std::fabs(add));
    ASSERT_LE(std::fabs(got[i] - want), scale) << "element " << i;
  }
}

TEST(GemmLibraryCuda, ProductsAreInTheirClass) {
  if (!test::cuda_present()) GTEST_SKIP() << "no CUDA device";
  int other_bits = 0;  // than those of our kernels: the library has computed
  for (const Size& s : kSizes)
    for (const MathMode mode : kModes)
      for (int layout = 0; layout < 8; ++layout) {
        SCOPED_TRACE(testing::Message()
                     << s.m << "x" << s.n << "x" << s.k << " mode " << int(mode) << " layout " << layout);
        const Tensor a = gaussian({s.m, s.k}, 1), b = gaussian({s.k, s.n}, 2), old = gaussian({s.m, s.n}, 4),
                     bias = layout & 4 ? gaussian({s.n}, 3) : Tensor{};
        const auto stored = [](const Tensor& t, bool turned) {  // the same values, columns side by side
          return turned ? t.transpose(0, 1).packed().to(kGpu).transpose(0, 1) : t.to(kGpu);
        };
        const double beta = layout % 3 == 0 ? 0 : 0.5;
        const auto product = [&](bool library) {
          Tensor c = layout == 3 ? stored(old, true) : old.to(kGpu);  // a result by columns
          gemm(c, stored(a, layout & 1), stored(b, layout & 2), on_gpu(bias), -1.25, beta,
               {.inputs = mode, .library = library});
          return c.to(Device{});
        };
        const Tensor c = product(true);
        expect_in_class(c, a, b, old, bias, -1.25, beta, mode);
        ASSERT_TRUE(equal_bits(product(true), c));
        other_bits += !equal_bits(product(false), c);
      }
  EXPECT_GT(other_bits, 60);
}

/// The library's results of bf16 are its sums, in their class, rounded once.
TEST(GemmLibraryCuda, RoundedResultsAreInTheirClass) {
  if (!test::cuda_present()) GTEST_SKIP() << "no CUDA device";
  for (const Size& s : kSizes)
    for (const bool with_bias : {false, true}) {
      SCOPED_TRACE(testing::Message() << s.m << "x" << s.n << "x" << s.k << " bias " << with_bias);
      const Tensor a = gaussian({s.m, s.k}, 1).cast(DType::bf16),
                   b = gaussian({s.n, s.k}, 2).cast(DType::bf16),
                   bias = with_bias ? gaussian({s.n}, 3).cast(DType::bf16) : Tensor{};
      Tensor c = Tensor::empty({s.m, s.n}, DType::bf16, kGpu);
      gemm(c, on_gpu(a), GemmInput(on_gpu(b)).t(), on_gpu(bias), 1, 0,
           {.inputs = MathMode::bf16, .library = true});
      const Tensor x = a.cast(DType::f32), y = b.cast(DType::f32).transpose(0, 1).packed();
      const std::vector<double> product = exact_product(x, y).to_vector<double>(),
                                sizes = exact_product(magnitudes(x), magnitudes(y)).to_vector<double>();
      const std::vector<float> got = c.to(Device{}).cast(DType::f32).to_vector<float>();
      const std::vector<float> add =
          with_bias ? bias.cast(DType::f32).to_vector<float>() : std::vector<float>(size_t(s.n), 0.f);
      for (size_t i = 0; i < got.size(); ++i) {
        const double want = product[i] + add[i % add.size()],
                     sum = 4 * 0x1p-23 * (std::sqrt(double(s.k)) * sizes[i] + std::fabs(want));
        ASSERT_LE(std::fabs(got[i] - want), 1.01 * sum + 0x1p-8 * std::fabs(want)) << "element " << i;
      }
    }
}

/// The sums of a bias gradient come with the product, in the class of the library; or the product alone does.
TEST(GemmLibraryCuda, SumsOfTheLinesOfA) {
  if (!test::cuda_present()) GTEST_SKIP() << "no CUDA device";
  int summed = 0, other_bits = 0;
  for (const Size& s : kSizes)
    for (const MathMode mode : kModes)
      for (int layout = 0; layout < 8; ++layout) {
        SCOPED_TRACE(testing::Message()
                     << s.m << "x" << s.n << "x" << s.k << " mode " << int(mode) << " layout " << layout);
        const Tensor a = gaussian({s.m, s.k}, 1), b = gaussian({s.k, s.n}, 2);
        const auto stored = [](const Tensor& t, bool turned) {
          return turned ? t.transpose(0, 1).packed().to(kGpu).transpose(0, 1) : t.to(kGpu);
        };
        const auto product = [&](Tensor& sums, bool library) {
          Tensor c = stored(Tensor::zeros({s.m, s.n}), layout & 4);
          const bool done = gemm_with_sums(c, sums, stored(a, layout & 1), stored(b, layout & 2),
                                           {.inputs = mode, .library = library});
          expect_in_class(c.to(Device{}), a, b, Tensor::zeros({s.m, s.n}), {}, 1, 0, mode);
          return done;
        };
        const auto untouched = [&] { return Tensor::full({s.m}, 7, DType::f32, kGpu); };
        Tensor sums = untouched(), again = untouched();
        const bool done = product(sums, true);
        EXPECT_EQ(product(again, true), done);
        EXPECT_TRUE(equal_bits(again.to(Device{}), sums.to(Device{})));
        EXPECT_FALSE(product(again = untouched(), false));
        EXPECT_TRUE(equal_bits(again.to(Device{}), untouched().to(Device{})));
        const std::vector<float> got = sums.to_vector<float>();
        summed += done;
        EXPECT_FALSE(done && mode == MathMode::bf16) << "sums of rounded numbers";
        for (int64_t m = 0; m < s.m; ++m) {
          double sum = 0, size = 0;
          for (int64_t k = 0; k < s.k; ++k) {
            const double v = a.data_const<float>()[m * s.k + k];
            sum += v, size += std::fabs(v);
          }
          const double each = 4 * 0x1p-23 * std::sqrt(double(s.k)) + (mode == MathMode::tf32 ? 2.1e-3 : 0);
          if (done)
            ASSERT_NEAR(got[size_t(m)], sum, size * each) << m;
          else
            ASSERT_EQ(got[size_t(m)], 7);
          other_bits += done && got[size_t(m)] != float(sum);
        }
      }
  EXPECT_GT(summed, 40);
  EXPECT_GT(other_bits, 0) << "somebody else's order";
}

/// The products of attention: heads inside [B, N, H, D], a batch that no single stride describes.
TEST(GemmLibraryCuda, HeadsNeedNoCopies) {
  if (!test::cuda_present()) GTEST_SKIP() << "no CUDA device";
  for (const MathMode mode : kModes) {
    const Tensor qkv = gaussian({2, 21, 3, 4, 24}, 1), gpu = qkv.to(kGpu);
    const auto heads = [](const Tensor& t, int i) { return t.select(2, i).permute({0, 2, 1, 3}); };
    const GemmMode library{.inputs = mode, .library = true};
    Tensor scores = Tensor::full({2, 4, 21, 21}, NAN, DType::f32, kGpu);
    gemm(scores, heads(gpu, 0), GemmInput(heads(gpu, 1)).t(), {}, 0.125, 0, library);
    const Tensor host = scores.to(Device{}), zero = Tensor::zeros({2, 4, 21, 21});
    expect_in_class(host, heads(qkv, 0).packed(), heads(qkv, 1).transpose(-2, -1).packed(), zero, {}, 0.125,
                    0, mode);
    Tensor context = Tensor::full({2, 21, 4, 24}, NAN, DType::f32, kGpu),
           window = context.permute({0, 2, 1, 3});
    gemm(window, scores, heads(gpu, 2), {}, 1, 0, library);
    expect_in_class(context.to(Device{}).permute({0, 2, 1, 3}).packed(), host, heads(qkv, 2).packed(),
                    Tensor::zeros({2, 4, 21, 24}), {}, 1, 0, mode);
    Tensor shared = Tensor::full({2, 4, 21, 5}, NAN, DType::f32, kGpu);  // one matrix for all batches
    const Tensor w = gaussian({24, 5}, 2);
    gemm(shared, heads(gpu, 0), w.to(kGpu), {}, 1, 0, library);
    expect_in_class(shared.to(Device{}), heads(qkv, 0).packed(), w.expand({2, 4, 24, 5}).packed(),
                    Tensor::zeros({2, 4, 21, 5}), {}, 1, 0, mode);
  }
}

/// Operands that the library cannot read where they lie are copied first: codes, rows that repeat, odd steps.
TEST(GemmLibraryCuda, OtherOperandsAreBroughtIntoItsForm) {
  if (!test::cuda_present()) GTEST_SKIP() << "no CUDA device";
  const GemmMode library{.library = true};
  const Coded c = random_coded({7, 40}, false, 0, 15, -2, 2, -8, 1);
  const Tensor x = gaussian({9, 40}, 2), zero = Tensor::zeros({9, 7});
  Tensor y = Tensor::full({9, 7}, NAN, DType::f32, kGpu);
  gemm(y, x.to(kGpu), GemmInput(on_gpu(c)).t(), {}, 1, 0, library);
  expect_in_class(y.to(Device{}), x, c.dequantize().transpose(0, 1).packed(), zero, {}, 1, 0, MathMode::f32);
  const Tensor row = gaussian({1, 40}, 3);
  gemm(y, row.to(kGpu).expand({9, 40}), GemmInput(on_gpu(c)).t(), {}, 1, 0, library);
  expect_in_class(y.to(Device{}), row.expand({9, 40}).packed(), c.dequantize().transpose(0, 1).packed(), zero,
                  {}, 1, 0, MathMode::f32);
  const Tensor wide = gaussian({9, 40, 2}, 4);
  gemm(y, wide.to(kGpu).select(2, 1), GemmInput(on_gpu(c)).t(), {}, 1, 0, library);
  expect_in_class(y.to(Device{}), wide.select(2, 1).packed(), c.dequantize().transpose(0, 1).packed(), zero,
                  {}, 1, 0, MathMode::f32);
}

TEST(GemmLibraryCuda, PartsStayWithinTheStatedDistance) {
  if (!test::cuda_present()) GTEST_SKIP() << "no CUDA device";
  const double bound[] = {0, 8e-3, 3e-5, 2e-6};  // small products have large errors
  for_each_gradient([&](const Tensor& g, const Coded& c, bool first, bool g_turned, bool c_turned) {
    Tensor x = g_turned ? g.transpose(-2, -1).packed() : g,
           y = c_turned ? c.dequantize().transpose(-2, -1).packed() : c.dequantize();
    if (x.size(-1) == 0) return;
    const Tensor product = matmul(x.cast(DType::f64), y.cast(DType::f64), {}, 0.7),
                 want = first ? product.transpose(-2, -1).packed() : product;
    for (const int parts : {1, 2, 3}) {
      const Tensor got =
          gradient(on_gpu(g), on_gpu(c), first, g_turned, c_turned, {.parts = parts, .library = true});
      ASSERT_LE(error_against(got, want), bound[parts]) << "parts " << parts;
    }
  });
}

}  // namespace
}  // namespace lowbit
