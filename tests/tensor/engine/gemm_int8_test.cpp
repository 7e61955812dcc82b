#include "tensor/engine/gemm_int8.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/tensor/engine/gemm_support.h"

namespace lowbit {
namespace {

using test::for_each_isa_and_threads;
using test::random_coded;

struct Range {
  bool is_signed;
  int lo, hi;
};

/// Every bit-width 2…8, signed and unsigned.
std::vector<Range> ranges() {
  std::vector<Range> r;
  for (int bits = 2; bits <= 8; ++bits) {
    r.push_back({true, -(1 << (bits - 1)), (1 << (bits - 1)) - 1});
    r.push_back({false, 0, (1 << bits) - 1});
  }
  return r;
}

Coded codes(const Shape& s, Range r, uint32_t seed) {
  return random_coded(s, r.is_signed, r.lo, r.hi, Coded::kPerTensor, 0, 0, seed);
}

int code_at(const Tensor& t, int64_t i, int64_t j) {
  const View v = t.view();
  const int64_t at = i * v.stride[0] + j * v.stride[1];
  return v.dtype == DType::u8 ? int(v.as<uint8_t>()[at]) : int(v.as<int8_t>()[at]);
}

std::vector<int> code_values(const Tensor& t) {
  std::vector<int> v;
  v.reserve(size_t(t.numel()));
  for (int64_t i = 0; i < t.size(0); ++i)
    for (int64_t j = 0; j < t.size(1); ++j) v.push_back(code_at(t, i, j));
  return v;
}

Tensor naive(const Tensor& a, const Tensor& b) {
  const int64_t m = a.size(0), n = b.size(0), k = a.size(1);
  const std::vector<int> x = code_values(a), y = code_values(b);
  Tensor c = Tensor::empty({m, n}, DType::i32);
  int32_t* out = c.data<int32_t>();
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      int64_t s = 0;
      for (int64_t l = 0; l < k; ++l) s += x[size_t(i * k + l)] * y[size_t(j * k + l)];
      out[i * n + j] = int32_t(s);
    }
  return c;
}

constexpr int64_t kSizes[][3] = {{1, 1, 1},     {2, 3, 0},    {1, 33, 7},    {31, 1, 33},
                                 {13, 31, 4},   {14, 32, 8},  {15, 33, 9},   {17, 16, 101},
                                 {29, 48, 383}, {33, 65, 64}, {8, 17, 1201}, {40, 70, 198}};

TEST(GemmInt8, ExactForAllRangesAndLayouts) {
  for (const auto& [m, n, k] : kSizes)
    for (const Range ra : ranges())
      for (const Range rb :
           {Range{true, -2, 1}, Range{true, -128, 127}, Range{false, 0, 255}, Range{false, 0, 15}})
        for (int layout = 0; layout < 4; ++layout) {
          const Coded a = codes(layout & 1 ? Shape{k, m} : Shape{m, k}, ra, 1);
          const Coded b = codes(layout & 2 ? Shape{k, n} : Shape{n, k}, rb, 2);
          const GemmInput ia = layout & 1 ? GemmInput(a).t() : GemmInput(a),
                          ib = layout & 2 ? GemmInput(b).t() : GemmInput(b);
          const Tensor expected = naive(layout & 1 ? a.codes.transpose(0, 1) : a.codes,
                                        layout & 2 ? b.codes.transpose(0, 1) : b.codes);
          for_each_isa_and_threads(
              [&] {
                Tensor c = Tensor::full({m, n}, -1, DType::i32);
                gemm_int8(c, ia, ib);
                ASSERT_TRUE(equal_bits(c, expected))
                    << m << "x" << n << "x" << k << " layout " << layout << " a [" << ra.lo << ", " << ra.hi
                    << "] b [" << rb.lo << ", " << rb.hi << "]";
              },
              {1});
          if (HasFatalFailure()) return;
        }
}

/// Constant extremes: the largest sums a saturating 16-bit kernel would get wrong.
TEST(GemmInt8, ExtremesDoNotSaturate) {
  for (const int64_t k : {4, 64, 8000})
    for (const int av : {0, 255})
      for (const int bv : {-128, 127}) {
        const Tensor a = Tensor::full({20, k}, av, DType::u8), b = Tensor::full({40, k}, bv, DType::i8);
        for_each_isa_and_threads([&] {
          Tensor c = Tensor::empty({20, 40}, DType::i32);
          gemm_int8(c, a, b);
          for (const int32_t v : c.to_vector<int32_t>()) ASSERT_EQ(v, k * av * bv);
        });
      }
}

TEST(GemmInt8, StridedBatchesAndScatteredResult) {
  const Coded qkv = codes({2, 21, 3, 4, 24}, {true, -128, 127}, 1);
  const auto heads = [&](int64_t i) { return qkv.codes.select(2, i).permute({0, 2, 1, 3}); };
  const Tensor q = heads(0), k = heads(1), v = heads(2);
  for_each_isa_and_threads([&] {
    Tensor scores = Tensor::empty({2, 4, 21, 21}, DType::i32),
           store = Tensor::full({2, 21, 4, 24, 2}, 0, DType::i32);
    gemm_int8(scores, q, k);
    const Coded p = codes({2, 4, 21, 21}, {false, 0, 255}, 3);
    Tensor out = store.select(4, 1).permute({0, 2, 1, 3});
    gemm_int8(out, p, GemmInput(v).t());
    for (int i = 0; i < 2; ++i)
      for (int h = 0; h < 4; ++h) {
        const auto pick = [&](const Tensor& t) { return t.select(0, i).select(0, h); };
        ASSERT_TRUE(equal_bits(pick(scores).packed(), naive(pick(q), pick(k))));
        ASSERT_TRUE(equal_bits(pick(out).packed(), naive(pick(p.codes), pick(v).transpose(0, 1))));
      }
    const Tensor untouched = store.select(4, 0);
    for (const int32_t x : untouched.to_vector<int32_t>()) ASSERT_EQ(x, 0);
  });
}

TEST(GemmInt8, BoundOnK) {
  const Tensor a = Tensor::full({1, 65793}, 255, DType::u8), b = Tensor::full({1, 65793}, -128, DType::i8);
  Tensor c = Tensor::empty({1, 1}, DType::i32);
  gemm_int8(c, a, b);
  EXPECT_EQ(c.item<int32_t>(), -65793 * 255 * 128);
  const Tensor a1 = Tensor::full({1, 65794}, 255, DType::u8), b1 = Tensor::full({1, 65794}, -128, DType::i8);
  try {
    gemm_int8(c, a1, b1);
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("K · max|a| · max|b| must be at most 2147483647 (got K = 65794"),
              std::string::npos)
        << e.what();
  }
  Coded narrow = codes({1, 65794}, {true, -8, 7}, 1);  // fewer bits: a larger K is exact
  gemm_int8(c, a1, narrow);
  EXPECT_EQ(c.item<int32_t>(), naive(a1, narrow.codes).item<int32_t>());
}

/// float64 value of the operand's element.
double value(const Coded& c, const Tensor& codes, int64_t i, int64_t j, bool transposed) {
  const int64_t row = transposed ? j : i, col = transposed ? i : j;
  const double s = c.scale.data_const<float>()[c.per_tensor() ? 0 : c.scale_axis == -1 ? col : row];
  const double b = !c.offset.defined() ? 0 : c.offset.data_const<float>()[c.offset.numel() > 1 ? col : 0];
  return s * (code_at(codes, row, col) + c.shift) + b;
}

/// The operand as float64 [rows, K].
std::vector<double> exact_values(const Coded& c, bool transposed) {
  const int64_t rows = c.codes.size(transposed ? 1 : 0), k = c.codes.size(transposed ? 0 : 1);
  std::vector<double> v(size_t(rows * k));
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t l = 0; l < k; ++l) v[size_t(i * k + l)] = value(c, c.codes, i, l, transposed);
  return v;
}

/// Largest |out − exact| relative to the row's largest exact magnitude.
double row_error(const Tensor& out, const Coded& a, const Coded& b, bool b_transposed, const Tensor& bias,
                 double alpha) {
  const int64_t m = out.size(0), n = out.size(1), k = a.codes.size(1);
  const std::vector<double> x = exact_values(a, false), w = exact_values(b, b_transposed);
  double worst = 0;
  for (int64_t i = 0; i < m; ++i) {
    double size = 0, error = 0;
    for (int64_t j = 0; j < n; ++j) {
      double y = 0;
      for (int64_t l = 0; l < k; ++l) y += x[size_t(i * k + l)] * w[size_t(j * k + l)];
      y = alpha * y + (bias.defined() ? double(bias.data_const<float>()[j]) : 0);
      size = std::max(size, std::abs(y));
      error = std::max(error, std::abs(y - double(out.data_const<float>()[i * n + j])));
    }
    if (size > 0) worst = std::max(worst, error / size);
  }
  return worst;
}

void check_setting(const Coded& a, const Coded& b, bool bt, const Tensor& bias, double alpha) {
  const GemmInput ib = bt ? GemmInput(b).t() : GemmInput(b);
  Tensor first;
  for_each_isa_and_threads([&] {
    Tensor y = Tensor::full({a.codes.size(0), ib.rows()}, NAN);
    coded_gemm(y, a, ib, bias, alpha);
    if (!first.defined()) {
      first = y;
      ASSERT_LT(row_error(y, a, b, bt, bias, alpha), 2e-7);
    }
    ASSERT_TRUE(equal_bits(y, first));
    if (!bt) {
      Tensor z = Tensor::full(y.shape(), NAN);
      coded_gemm(z, a, pack_b(b), bias, alpha);
      ASSERT_TRUE(equal_bits(z, first));
    }
  });
}

TEST(CodedGemm, SweepOfQuantizerSettings) {
  const int64_t m = 33, n = 35;  // a whole tile of every kernel and a part of one
  uint32_t seed = 1;
  for (const int64_t k : {int64_t{5}, int64_t{64}, int64_t{390}})
    for (const Range ra : ranges())
      for (const Range rb :
           {Range{true, -2, 1}, Range{true, -8, 7}, Range{true, -128, 127}, Range{false, 0, 255}})
        for (int form = 0; form < 12; ++form) {
          const int a_axis = form % 2 ? -2 : Coded::kPerTensor,
                    b_axis = form / 2 % 2 ? -2 : Coded::kPerTensor;
          const int offset = form / 4;  // 0 none, 1 scalar, 2 per channel
          const double shift_a = form % 3 == 1 ? -7 : 0, shift_b = form % 3 == 2 ? 0.5 : 0;
          const Coded a = random_coded({m, k}, ra.is_signed, ra.lo, ra.hi, a_axis, offset, shift_a, seed++);
          const Coded b =
              random_coded({n, k}, rb.is_signed, rb.lo, rb.hi, b_axis, (offset + form) % 3, shift_b, seed++);
          Tensor bias = Tensor::empty({n});
          for (int64_t j = 0; j < n; ++j) bias.data<float>()[j] = float(j % 7) - 3.3f;
          SCOPED_TRACE(
              str_cat("K ", k, " a [", ra.lo, ", ", ra.hi, "] b [", rb.lo, ", ", rb.hi, "] form ", form));
          check_setting(a, b, false, form % 2 ? bias : Tensor{},
                        form % 5 == 0   ? 0.125
                        : form % 5 == 1 ? 0.3
                                        : 1.0);
          if (HasFatalFailure()) return;
        }
}

/// V of attention: [K, N] codes with a scale and an offset per channel.
TEST(CodedGemm, TransposedSecondOperand) {
  for (int offset = 0; offset < 3; ++offset)
    for (const int axis : {Coded::kPerTensor, -1}) {
      const Coded p = random_coded({50, 61}, false, 0, 15, Coded::kPerTensor, offset, 0, 1);
      const Coded v = random_coded({61, 40}, true, -8, 7, axis, offset, 0, 2);
      check_setting(p, v, true, {}, 1);
    }
}

TEST(CodedGemm, LargeSumsAreExactBeforeTheirRounding) {
  const Coded a = codes({20, 3072}, {false, 0, 255}, 1), b = codes({35, 3072}, {true, -128, 127}, 2);
  check_setting(a, b, false, {}, 1);
  const Coded u = codes({3, 40000}, {false, 0, 255}, 3), w = codes({2, 40000}, {true, -128, 127}, 4);
  check_setting(u, w, false, {}, 1);
}

TEST(CodedGemm, OffsetsThatCancelKeepTheBound) {
  Coded a = random_coded({16, 192}, false, 0, 255, Coded::kPerTensor, 1, 0, 1);
  a.scale.data<float>()[0] = 0.01f;
  a.offset.data<float>()[0] = -1.27f;
  const Coded b = random_coded({24, 192}, true, -8, 7, -2, 0, 0, 2);
  check_setting(a, b, false, {}, 1);
}

TEST(CodedGemm, BatchesEqualSingleProducts) {
  const int64_t tokens = 19;
  for (const int axis : {Coded::kPerTensor, -2, -3})
    for (const int offset : {0, 1, 2}) {
      const Coded a = random_coded({3, 4, tokens, 24}, true, -8, 7, axis, offset, 0, 1);
      const Coded b = random_coded({3, 4, 30, 24}, true, -128, 127, axis, offset, 0, 2);
      const auto pick = [&](const Coded& c, int64_t i, int64_t h) {
        Coded r = c;
        r.codes = c.codes.select(0, i).select(0, h);
        if (axis == -3) r.scale = c.scale.slice(0, h, h + 1), r.scale_axis = Coded::kPerTensor;
        return r;
      };
      for_each_isa_and_threads([&] {
        Tensor y = Tensor::empty({3, 4, tokens, 30});
        coded_gemm(y, a, b, {}, 0.125);
        for (int i = 0; i < 3; ++i)
          for (int h = 0; h < 4; ++h) {
            Tensor z = Tensor::empty({tokens, 30});
            coded_gemm(z, pick(a, i, h), pick(b, i, h), {}, 0.125);
            ASSERT_TRUE(equal_bits(y.select(0, i).select(0, h).packed(), z));
          }
      });
    }
}

/// Heads with scales and offsets of their own.
TEST(CodedGemm, GroupsEqualSingleProducts) {
  const int64_t tokens = 19;
  Coded a = random_coded({3, 4, tokens, 24}, true, -8, 7, -2, 2, 0, 1);
  Coded b = random_coded({3, 4, 30, 24}, true, -8, 7, -2, 2, 0.5, 2);
  for (Coded* c : {&a, &b}) {
    c->scale = random_coded({4 * c->codes.size(-2), 2}, true, -8, 7, -2, 0, 0, 3)
                   .scale.reshape({4, c->codes.size(-2)});
    c->offset = random_coded({2, 4 * 24}, true, -8, 7, -2, 2, 0, 4).offset.reshape({4, 24});
  }
  const auto pick = [&](const Coded& c, int64_t i, int64_t h) {
    Coded r = c.group(h);
    r.codes = r.codes.select(0, i);
    return r;
  };
  for_each_isa_and_threads([&] {
    Tensor y = Tensor::empty({3, 4, tokens, 30});
    coded_gemm(y, a, b, {}, 0.125);
    for (int i = 0; i < 3; ++i)
      for (int h = 0; h < 4; ++h) {
        Tensor z = Tensor::empty({tokens, 30});
        coded_gemm(z, pick(a, i, h), pick(b, i, h), {}, 0.125);
        ASSERT_TRUE(equal_bits(y.select(0, i).select(0, h).packed(), z));
        ASSERT_LT(row_error(z, pick(a, i, h), pick(b, i, h), false, {}, 0.125), 2e-7);
      }
  });
}

/// A scale per token, shared by the images of the batch.
TEST(CodedGemm, ScalePerTokenAcrossTheBatch) {
  const Coded x = random_coded({5, 17, 40}, true, -8, 7, -2, 2, 0, 1);
  const Coded w = random_coded({33, 40}, true, -8, 7, -2, 0, 0.5, 2);
  const PackedCodes packed = pack_b(w);
  for_each_isa_and_threads([&] {
    Tensor y = Tensor::empty({5, 17, 33}), yp = Tensor::empty({5, 17, 33});
    coded_gemm(y, x, w);
    coded_gemm(yp, x, packed);
    ASSERT_TRUE(equal_bits(y, yp));
    for (int i = 0; i < 5; ++i) {
      Coded one = x;
      one.codes = x.codes.select(0, i);
      Tensor z = Tensor::empty({17, 33});
      coded_gemm(z, one, w);
      ASSERT_TRUE(equal_bits(y.select(0, i).packed(), z));
      ASSERT_LT(row_error(z, one, w, false, {}, 1), 2e-7);
    }
  });
}

TEST(CodedGemm, QuantizesWhilePacking) {
  std::mt19937 gen(3);
  std::normal_distribution<float> d;
  for (const Range r : ranges())
    for (const int64_t m : {3, 45})
      for (int offset = 0; offset < 3; ++offset)
        for (const int axis : {Coded::kPerTensor, -2}) {
          const int64_t k = 107;
          Coded a = random_coded({2, m, k}, r.is_signed, r.lo, r.hi, axis, offset, 0, 1);
          const Coded w = random_coded({40, k}, true, -8, 7, -2, 0, 0, 2);
          Tensor x = Tensor::empty({2, m, k});
          for (int64_t i = 0; i < x.numel(); ++i)
            x.data<float>()[i] = i % 11 ? d(gen) : float(i % 13 - 6) * 0.5f * a.scale.data_const<float>()[0];
          Tensor expected = Tensor::empty({2, m, k}, a.codes.dtype());
          const float* s = a.scale.data_const<float>();
          const float* b = a.offset.defined() ? a.offset.data_const<float>() : nullptr;
          for (int64_t i = 0; i < x.numel(); ++i) {
            const float u =
                (x.data<float>()[i] - (b ? b[offset == 2 ? i % k : 0] : 0)) / s[axis == -2 ? i / k % m : 0];
            const float q = std::nearbyint(std::max(std::min(u, float(r.hi)), float(r.lo)));
            if (r.is_signed)
              expected.data<int8_t>()[i] = int8_t(q);
            else
              expected.data<uint8_t>()[i] = uint8_t(q);
          }
          Coded known = a;
          known.codes = expected;
          Tensor y = Tensor::empty({2, m, 40}), z = Tensor::empty({2, m, 40});
          coded_gemm(z, known, w);
          for_each_isa_and_threads([&] {
            a.codes.fill(0);
            coded_gemm(y, a, w, {}, 1, x);
            ASSERT_TRUE(equal_bits(a.codes, expected));
            ASSERT_TRUE(equal_bits(y, z));
          });
        }
}

TEST(CodedGemm, Misuse) {
  const auto message = [](auto f) -> std::string {
    try {
      f();
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  };
  const Coded a = codes({4, 8}, {true, -8, 7}, 1), b = codes({5, 8}, {true, -8, 7}, 2);
  Tensor y = Tensor::empty({4, 5});
  Coded along_k = random_coded({4, 8}, true, -8, 7, -1, 0, 0, 1);
  EXPECT_FALSE(coded_gemm_supported(along_k, b));
  EXPECT_TRUE(coded_gemm_supported(a, b));
  EXPECT_NE(message([&] { coded_gemm(y, along_k, b); }).find("does not factor out"), std::string::npos);
  EXPECT_NE(message([&] {
              coded_gemm(y, a, codes({5, 9}, {true, -8, 7}, 2));
            }).find("must have one K"),
            std::string::npos);
  EXPECT_NE(message([&] { coded_gemm(y, a.dequantize(), b); }).find("operands must be Coded"),
            std::string::npos);
  EXPECT_NE(
      message([&] { coded_gemm(y, a, b, Tensor::zeros({4})); }).find("bias must be a contiguous f32 [5]"),
      std::string::npos);
  Coded bad = a;
  bad.scale = Tensor::zeros({3});
  EXPECT_NE(message([&] { coded_gemm(y, bad, b); }).find("scale per tensor must hold one value"),
            std::string::npos);
  Tensor wrong = Tensor::empty({5, 4});
  EXPECT_NE(message([&] { coded_gemm(wrong, a, b); }).find("output must be [4, 5] f32"), std::string::npos);
  Coded shifted = a;
  shifted.shift = 0.5;
  EXPECT_NE(message([&] {
              coded_gemm(y, shifted, b, {}, 1, Tensor::zeros({4, 8}));
            }).find("without shift"),
            std::string::npos);
}

}  // namespace
}  // namespace lowbit
