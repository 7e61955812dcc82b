// The float attention core beside cuDNN's fused attention. cuDNN sums in f32 and rounds twice to bf16, eight
// bits of mantissa: the probabilities before they meet v, and the result. Each is off by up to 2⁻⁹ of itself,
// together at most 2⁻⁸·Σ p|v|. Ours with --precision bf16 rounds the probabilities only: 2⁻⁹·Σ p|v| more.

#include <gtest/gtest.h>

#include <cmath>

#include "autograd/ops/linear.h"
#include "autograd/ops/softmax.h"
#include "tensor/core/context.h"
#include "tests/support/attention_cudnn.h"
#include "tests/support/golden.h"
#include "tests/support/op_case.h"

namespace lowbit::test {
namespace {

struct Form {
  const char* name;
  int64_t batch, queries, keys, heads, depth;
};
constexpr Form kForms[] = {{"DeiT", 2, 197, 197, 3, 64},
                           {"Swin window", 8, 49, 49, 3, 32},
                           {"BERT", 1, 128, 128, 2, 64},
                           {"few tokens", 3, 7, 7, 2, 16},
                           {"other keys", 2, 21, 70, 4, 24}};

/// Values that bf16 holds.
Tensor operand(const char* seed, const Shape& s, double scale) {
  return fill(seed, s, 0, scale).cast(DType::bf16).cast(DType::f32);
}

TEST(AttentionCudnnCuda, FloatCoreAgrees) {
  if (!cuda_present()) GTEST_SKIP() << "no CUDA device";
  if (const std::string why = CudnnAttention::missing(); !why.empty()) GTEST_SKIP() << why;
  const Context before = context();
  for (const Form& f : kForms) {
    const int64_t width = f.heads * f.depth;
    const double factor = 1 / std::sqrt(double(f.depth));
    const Tensor q = operand("q", {f.batch, f.queries, width}, 4),
                 k = operand("k", {f.batch, f.keys, width}, 1), v = operand("v", {f.batch, f.keys, width}, 1);
    const auto ours = [&](const Tensor& values) {
      const Variable p =
          softmax(attention_scores(Variable(q.to(kGpu)), Variable(k.to(kGpu)), f.heads, factor));
      return attention_context(p, Variable(values.to(kGpu)), f.heads).data().to_vector<float>();
    };
    const auto on_gpu = [](const Tensor& t) { return t.cast(DType::bf16).to(kGpu); };
    Tensor y = Tensor::full(q.shape(), NAN, DType::bf16, kGpu);
    CudnnAttention library(on_gpu(q), on_gpu(k), on_gpu(v), y, f.heads, factor);
    library.run();
    const std::vector<float> theirs = y.to(Device{}).cast(DType::f32).to_vector<float>();
    Tensor size = v.clone();
    for (int64_t i = 0; i < size.numel(); ++i) size.data<float>()[i] = std::fabs(size.data<float>()[i]);
    const std::vector<float> sizes = ours(size);
    for (const MathMode mode : {MathMode::f32, MathMode::bf16}) {
      context().gemm = mode;
      const std::vector<float> mine = ours(v);
      const double each = (mode == MathMode::f32 ? 0x1p-8 : 0x1p-8 + 0x1p-9) * 1.05;  // and the f32 sums
      double worst = 0;
      for (size_t i = 0; i < mine.size(); ++i)
        worst = std::max(
            worst, std::isnan(theirs[i]) ? INFINITY : std::fabs(theirs[i] - mine[i]) / double(sizes[i]));
      EXPECT_LE(worst, each) << f.name << ", mode " << int(mode);
      EXPECT_GT(worst, each / 100) << f.name << ": nobody has rounded";
    }
    context() = before;
  }
}

/// Query, key and value inside one tensor, as their projection writes them.
TEST(AttentionCudnnCuda, OperandsMayLieInsideOthers) {
  if (!cuda_present()) GTEST_SKIP() << "no CUDA device";
  if (const std::string why = CudnnAttention::missing(); !why.empty()) GTEST_SKIP() << why;
  const Tensor qkv = fill("qkv", {2, 49, 3 * 64}, 0, 1).cast(DType::bf16).to(kGpu);
  const auto part = [&](int i) { return qkv.slice(2, i * 64, (i + 1) * 64); };
  const auto run = [&](bool packed) {
    const auto operand = [&](int i) { return packed ? part(i).packed() : part(i); };
    Tensor y = Tensor::empty({2, 49, 64}, DType::bf16, kGpu);
    CudnnAttention(operand(0), operand(1), operand(2), y, 2, 0.2).run();
    return y.to(Device{});
  };
  EXPECT_TRUE(equal_bits(run(false), run(true)));
}

TEST(AttentionCudnnCuda, WhatHasNoPlanSaysSoInOneLine) {
  if (!cuda_present()) GTEST_SKIP() << "no CUDA device";
  if (const std::string why = CudnnAttention::missing(); !why.empty()) GTEST_SKIP() << why;
  const Tensor t = Tensor::zeros({1, 8, 5}, DType::bf16, kGpu);  // rows of ten bytes
  try {
    CudnnAttention(t, t, t, t.clone(), 1, 1).run();
    FAIL() << "a plan";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::cuda);
    const std::string text = e.what();
    EXPECT_EQ(text.rfind("cudnn_attention: cuDNN has no plan for 1 heads of q=[1, 8, 5]", 0), 0u) << text;
    EXPECT_NE(text.find("multiple of 8"), std::string::npos) << text;
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
  }
}

}  // namespace
}  // namespace lowbit::test
