// Products on a GPU against those of the CPU, beyond the op table: operand kinds, layouts, batches, sizes off
// the tiles.

#include <gtest/gtest.h>

#include "tensor/engine/accumulate.h"
#include "tensor/engine/gemm_int8.h"
#include "tests/support/op_case.h"
#include "tests/tensor/engine/gemm_support.h"

namespace lowbit {
namespace {

using test::kGpu;
using test::on_gpu;
using test::random_coded;

Tensor random_tensor(const Shape& s, uint32_t seed) {
  return test::make_input({.name = std::to_string(seed), .shape = s});
}

struct Size {
  int64_t m, n, k;
};
constexpr Size kSizes[] = {{1, 1, 1},   {2, 3, 0},      {17, 35, 5},    {64, 64, 64}, {65, 63, 66},
                           {16, 8, 32}, {130, 70, 198}, {40, 130, 383}, {3, 2, 4000}};

/// Every form for small products, a few of them, others each time, for large ones: emulation is slow.
bool chosen(const Size& s, int form) { return s.m * s.n * s.k < 5000 || (form + int(s.m)) % 6 == 0; }

TEST(GemmCuda, IntegerProductsEqualTheCpu) {
  if (!test::cuda_present()) GTEST_SKIP() << "no CUDA device";
  uint32_t seed = 1;
  for (const Size& s : kSizes)
    for (const bool a_signed : {false, true})
      for (const bool b_signed : {false, true})
        for (int layout = 0; layout < 4; ++layout) {
          if (!chosen(s, 4 * a_signed + 2 * b_signed + layout)) continue;
          const Coded a =
              random_coded(layout & 1 ? Shape{s.k, s.m} : Shape{s.m, s.k}, a_signed, a_signed ? -128 : 0,
                           a_signed ? 127 : 255, Coded::kPerTensor, 0, 0, seed++);
          const Coded b =
              random_coded(layout & 2 ? Shape{s.k, s.n} : Shape{s.n, s.k}, b_signed, b_signed ? -8 : 0,
                           b_signed ? 7 : 255, Coded::kPerTensor, 0, 0, seed++);
          const auto product = [&](const Coded& x, const Coded& y, Device d) {
            Tensor c = Tensor::full({s.m, s.n}, -1, DType::i32, d);
            gemm_int8(c, layout & 1 ? GemmInput(x).t() : GemmInput(x),
                      layout & 2 ? GemmInput(y).t() : GemmInput(y));
            return c.to(Device{});
          };
          ASSERT_TRUE(equal_bits(product(on_gpu(a), on_gpu(b), kGpu), product(a, b, Device{})))
              << s.m << "x" << s.n << "x" << s.k << " layout " << layout << " signed " << a_signed
              << b_signed;
        }
}

TEST(GemmCuda, ScaledProductsEqualTheCpu) {
  if (!test::cuda_present()) GTEST_SKIP() << "no CUDA device";
  uint32_t seed = 1;
  for (const Size& s : kSizes)
    for (int form = 0; form < 36; ++form) {
      if (!chosen(s, form)) continue;
      const int a_axis = form % 2 ? -2 : Coded::kPerTensor, b_axis = form / 2 % 2 ? -2 : Coded::kPerTensor;
      const Coded a = random_coded({2, s.m, s.k}, form % 3 == 0, form % 3 ? 0 : -8, form % 3 ? 15 : 7, a_axis,
                                   form / 4 % 3, form % 3 == 1 ? -7 : 0, seed++);
      const Coded b =
          random_coded({s.n, s.k}, true, -128, 127, b_axis, form / 12, form % 3 == 2 ? 0.5 : 0, seed++);
      const Tensor bias = form % 2 ? random_tensor({s.n}, seed++) : Tensor{};
      const auto product = [&](const Coded& x, const Coded& y, const Tensor& with, Device d) {
        Tensor c = Tensor::full({2, s.m, s.n}, NAN, DType::f32, d);
        coded_gemm(c, x, y, with, 0.3);
        return c.to(Device{});
      };
      ASSERT_TRUE(
          equal_bits(product(on_gpu(a), on_gpu(b), on_gpu(bias), kGpu), product(a, b, bias, Device{})))
          << s.m << "x" << s.n << "x" << s.k << " form " << form;
    }
}

TEST(GemmCuda, HeadsAndQuantizationBeforeTheProductEqualTheCpu) {
  if (!test::cuda_present()) GTEST_SKIP() << "no CUDA device";
  const Coded qkv = random_coded({2, 21, 3, 4, 24}, true, -8, 7, Coded::kPerTensor, 0, 0, 1);
  const auto scores = [&](const Coded& all, Device d) {
    Coded q = all, k = all;
    q.codes = all.codes.select(2, 0).permute({0, 2, 1, 3});
    k.codes = all.codes.select(2, 1).permute({0, 2, 1, 3});
    Tensor store = Tensor::full({2, 21, 4, 21}, NAN, DType::f32, d), y = store.permute({0, 2, 1, 3});
    coded_gemm(y, q, k, {}, 0.125);
    return store.to(Device{});
  };
  EXPECT_TRUE(equal_bits(scores(on_gpu(qkv), kGpu), scores(qkv, Device{})));
  for (int offset = 0; offset < 3; ++offset) {
    const Coded a = random_coded({2, 45, 107}, true, -8, 7, -2, offset, 0, 1),
                w = random_coded({40, 107}, true, -8, 7, -2, 0, 0, 2);
    const Tensor x = random_tensor({2, 45, 107}, 3);
    const auto product = [](Coded c, const Coded& weight, const Tensor& from, Device d) {
      c.codes.fill(0);
      Tensor y = Tensor::full({2, 45, 40}, NAN, DType::f32, d);
      coded_gemm(y, c, weight, {}, 1, from);
      return std::pair(y.to(Device{}), c.codes.to(Device{}));
    };
    const auto gpu = product(on_gpu(a), on_gpu(w), on_gpu(x), kGpu), cpu = product(a, w, x, Device{});
    EXPECT_TRUE(equal_bits(gpu.first, cpu.first));
    EXPECT_TRUE(equal_bits(gpu.second, cpu.second));
  }
}

TEST(GemmCuda, FloatProductsEqualTheCpu) {
  if (!test::cuda_present()) GTEST_SKIP() << "no CUDA device";
  for (const Size& s : kSizes)
    for (int layout = 0; layout < 8; ++layout) {
      const Tensor a = layout & 1 ? random_tensor({s.k, s.m}, 1).transpose(0, 1)
                                  : random_tensor({s.m, s.k}, 1),
                   b = layout & 2 ? random_tensor({s.n, s.k}, 2).transpose(0, 1)
                                  : random_tensor({s.k, s.n}, 2),
                   old = random_tensor({s.m, s.n}, 3), bias = layout & 4 ? random_tensor({s.n}, 4) : Tensor{};
      const auto product = [&](const Tensor& x, const Tensor& y, const Tensor& with, Tensor c) {
        gemm(c, x, y, with, -1.25, layout % 3 == 0 ? 0.5 : layout % 3 == 1 ? 1 : 0);
        return c.to(Device{});
      };
      ASSERT_TRUE(equal_bits(product(on_gpu(a), on_gpu(b), on_gpu(bias), old.to(kGpu)),
                             product(a, b, bias, old.clone())))
          << s.m << "x" << s.n << "x" << s.k << " layout " << layout;
    }
}

/// Gradients, some lines dominated by a few values, times codes on either side.
TEST(GemmCuda, ProductsByDigitsEqualTheCpu) {
  if (!test::cuda_present()) GTEST_SKIP() << "no CUDA device";
  uint32_t seed = 1;
  for (const Size& s : kSizes)
    for (const int digits : {2, 3})
      for (int form = 0; form < 24; ++form) {
        if (!chosen(s, form)) continue;
        const bool codes_first = form & 1, floats_turned = form & 2, codes_turned = form & 4;
        const int64_t rows = codes_first ? s.n : s.m, lines = codes_first ? s.m : s.n;
        Tensor g = random_tensor(floats_turned ? Shape{2, s.k, rows} : Shape{2, rows, s.k}, seed++);
        if (form >= 8)
          for (int64_t i = 0; i < g.numel(); i += 97) g.data<float>()[i] *= 300;
        const int axis = form % 3 == 0 ? Coded::kPerTensor : form % 3 == 1 ? -1 : -2;
        const Coded c =
            random_coded(codes_turned ? Shape{2, lines, s.k} : Shape{2, s.k, lines}, form % 2 == 0,
                         form % 2 ? 0 : -8, form % 2 ? 255 : 7, axis, 0, form % 5 == 0 ? 0.5 : 0, seed++);
        // floats [rows, k] · codes [k, lines], or codes [lines, k] · floats [k, rows]
        const auto product = [&](const Tensor& x, const Coded& y, Device d) {
          Tensor out =
              Tensor::full(codes_first ? Shape{2, lines, rows} : Shape{2, rows, lines}, NAN, DType::f32, d);
          if (codes_first)
            gemm(out, codes_turned ? GemmInput(y) : GemmInput(y).t(),
                 floats_turned ? GemmInput(x) : GemmInput(x).t(), {}, 0.7, 0, {.digits = digits});
          else
            gemm(out, floats_turned ? GemmInput(x).t() : GemmInput(x),
                 codes_turned ? GemmInput(y).t() : GemmInput(y), {}, 0.7, 0, {.digits = digits});
          return out.to(Device{});
        };
        ASSERT_TRUE(equal_bits(product(on_gpu(g), on_gpu(c), kGpu), product(g, c, Device{})))
            << s.m << "x" << s.n << "x" << s.k << " form " << form << " digits " << digits;
      }
}

/// The gradients of two layers of one input, whose input gradients are added up, of one with batches, and
/// sums of columns: in one list, alone and on both devices.
TEST(GemmCuda, ProductsTogetherAreThoseAlone) {
  for (const int digits : {2, 3})
    for (const int64_t tokens : {1, 130, 300})
      for (const int64_t outputs : {2, 70, 300}) {
        const int64_t inputs = 40, few = 3;
        Tensor g = random_tensor({tokens, outputs}, 31);
        const Tensor other = random_tensor({tokens, few}, 36), h = random_tensor({2, tokens, few}, 32);
        for (int64_t i = 0; i < g.numel(); i += 97) g.data<float>()[i] *= 300;
        const Coded w = random_coded({outputs, inputs}, true, -8, 7, Coded::kPerTensor, 0, 0, 33),
                    w2 = random_coded({few, inputs}, true, -8, 7, Coded::kPerTensor, 0, 0, 37),
                    x = random_coded({tokens, inputs}, false, 0, 15, -2, 0, 0, 34),
                    v = random_coded({2, few, inputs}, true, -8, 7, -2, 0, 0.5, 35);
        const auto on = [&](Device d, bool together) {
          const auto there = [&](const auto& t) { return d.is_cuda() ? on_gpu(t) : t; };
          const Tensor gd = there(g), od = there(other), hd = there(h);
          const auto out = [&](const Shape& s) { return Tensor::full(s, NAN, DType::f32, d); };
          const Tensor dx = out({tokens, inputs});
          std::vector<GemmProduct> all{{dx, od, there(w2), 0.7},
                                       {dx, gd, there(w), 0.7, true},
                                       {dx, od, there(w2), 1, true},
                                       {out({outputs, inputs}), GemmInput(gd).t(), there(x)},
                                       {out({2, tokens, inputs}), hd, there(v), -1}};
          const ColumnSums sums[] = {{out({outputs}), gd}, {out({few}), od}};
          const GemmMode mode{.digits = digits};
          if (together) {
            EXPECT_TRUE(gemm_together(all, sums, mode));
          }
          for (GemmProduct& p : all) {
            if (together) break;
            Tensor own = p.add ? out(p.out.shape()) : p.out;
            gemm(own, p.a, p.b, {}, p.alpha, 0, mode);
            if (p.add) accumulate({p.out.mutable_view(), own.view()}, d);
          }
          std::vector<Tensor> r;
          for (const GemmProduct& p : all) r.push_back(p.out.to(Device{}));
          for (const ColumnSums& s : sums)
            if (together) r.push_back(s.out.to(Device{}));
          return r;
        };
        const std::vector<Tensor> cpu = on({}, true), alone = on({}, false);
        for (size_t i = 0; i < alone.size(); ++i) EXPECT_TRUE(equal_bits(cpu[i], alone[i])) << i;
        for (int64_t n = 0; n < outputs; ++n) {  // rule 4
          float sum = 0;
          for (int64_t first = 0; first < tokens; first += 128) {
            float block = 0;
            for (int64_t t = first; t < std::min(tokens, first + 128); ++t)
              block += g.data<float>()[t * outputs + n];
            sum += block;
          }
          EXPECT_EQ(cpu[5].data<float>()[n], sum) << n;
        }
        if (!test::cuda_present()) continue;
        const std::vector<Tensor> gpu = on(kGpu, true);
        for (size_t i = 0; i < cpu.size(); ++i) EXPECT_TRUE(equal_bits(gpu[i], cpu[i])) << i;
      }
}

TEST(GemmCuda, WhatHasNoKernelTogetherIsLeftUndone) {
  const Tensor g = random_tensor({5, 3}, 41), f = random_tensor({3, 4}, 42);
  const Coded w = random_coded({3, 4}, true, -8, 7, Coded::kPerTensor, 0, 0, 43);
  const Tensor out = Tensor::full({5, 4}, 7);
  const auto done = [&](const GemmInput& b, int digits, std::vector<ColumnSums> sums = {}, bool add = false) {
    const GemmProduct one[] = {{out, g, b, 1, add}};
    return gemm_together(one, sums, {.digits = digits});
  };
  EXPECT_FALSE(done(w, 0)) << "float products";
  EXPECT_FALSE(done(f, 3)) << "no codes";
  EXPECT_FALSE(done(w, 3, {{Tensor::full({1}, 7), Tensor::full({5, 1}, 1)}}))
      << "a column of its own is a row";
  EXPECT_FALSE(gemm_together({}, {}, {.digits = 3})) << "nothing to do";
  EXPECT_TRUE(equal_bits(out, Tensor::full({5, 4}, 7)));
  EXPECT_TRUE(done(w, 3));
  EXPECT_THROW(done(w, 3, {{Tensor::full({4}, 7), g}}), Error) << "sums of another length";
  EXPECT_THROW(done(w, 3, {}, true), Error) << "nothing before it";
}

}  // namespace
}  // namespace lowbit
