// The second part of library_bench: our attention beside cuDNN's fused one, forward, without bias.
// One JSON line a shape: rates in Tflop/s (Top/s for codes) of the two products, 4·B·H·N²·D; softmax and
// quantizers are not counted, and what they take lowers the rate.
//   f32, bf16   scores, softmax and context by library products, three kernels, of f32 and of bf16 operands
//   codes       four bits: scores, softmax, quantizer and context in one kernel
//   (quant/ops/attention_probs.h);
//               the codes of query, key and value are there
//   cudnn_bf16  cuDNN; or, instead, "cudnn": why it has no plan

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>

#include "autograd/core/variable.h"
#include "autograd/ops/linear.h"
#include "autograd/ops/softmax.h"
#include "benchmarks/library_bench.h"
#include "quant/ops/lsq.h"
#include "tensor/core/context.h"
#include "tests/support/attention_cudnn.h"

namespace lowbit::bench {
namespace {

struct AttentionShape {
  const char* name;
  int64_t windows, tokens, heads, depth;  ///< windows: of one image or sequence
};
constexpr AttentionShape kShapes[] = {{"DeiT-T", 1, 197, 3, 64},         {"DeiT-S", 1, 197, 6, 64},
                                      {"Swin-T stage 1", 64, 49, 3, 32}, {"Swin-T stage 2", 16, 49, 6, 32},
                                      {"Swin-T stage 3", 4, 49, 12, 32}, {"Swin-T stage 4", 1, 49, 24, 32},
                                      {"BERT 128", 1, 128, 12, 64},      {"BERT 512", 1, 512, 12, 64}};

/// Numbers that repeat, in [-1, 1].
Tensor operand(const Shape& s, int64_t step) {
  Tensor t = Tensor::empty(s);
  float* const out = t.data<float>();
  for (int64_t i = 0, n = t.numel(); i < n; ++i) out[i] = float(i * step % 255 - 127) / 127;
  return t.to(kGpu);
}

Variable scale_of(double scale) { return Variable(Tensor::full({1}, scale, DType::f32, kGpu)); }
Variable codes(const Variable& x, const Variable& scale, bool is_signed) {
  LsqSettings s;
  s.levels = {Levels::of(4, is_signed)};
  return fake_quant_lsq(x, scale, {}, {}, s);
}

void measure(const AttentionShape& s, int64_t batch, double seconds) {
  const NoGrad off;
  const Context before = context();
  const Shape shape{batch * s.windows, s.tokens, s.heads * s.depth};
  const double factor = 1 / std::sqrt(double(s.depth)),
               work = 4e-12 * double(shape[0] * s.heads * s.tokens * s.tokens * s.depth);
  const Tensor q = operand(shape, 37), k = operand(shape, 91), v = operand(shape, 53);
  std::printf("{\"attention\": \"%s\", \"batch\": %lld, \"tokens\": %lld, \"heads\": %lld, \"depth\": %lld",
              s.name, static_cast<long long>(shape[0]), static_cast<long long>(s.tokens),
              static_cast<long long>(s.heads), static_cast<long long>(s.depth));
  const auto row = [&](const char* name, const auto& f) {
    std::printf(", \"%s\": %.2f", name, work / timed(seconds, f));
  };
  const auto floats = [&](MathMode mode, DType type) {
    context().gemm = mode;
    const Variable a(q.cast(type)), b(k.cast(type)), c(v.cast(type));
    row(type == DType::f32 ? "f32" : "bf16",
        [&] { attention_context(softmax(attention_scores(a, b, s.heads, factor)), c, s.heads); });
    context() = before;
  };
  floats(MathMode::f32, DType::f32);
  floats(MathMode::bf16, DType::bf16);
  const Variable coarse = scale_of(0.14), fine = scale_of(0.02), qc = codes(Variable(q), coarse, true),
                 kc = codes(Variable(k), coarse, true), vc = codes(Variable(v), coarse, true);
  row("codes", [&] {
    attention_context(codes(softmax(attention_scores(qc, kc, s.heads, factor)), fine, false), vc, s.heads);
  });
  try {
    Tensor y = Tensor::empty(shape, DType::bf16, kGpu);
    test::CudnnAttention library(q.cast(DType::bf16), k.cast(DType::bf16), v.cast(DType::bf16), y, s.heads,
                                 factor);
    row("cudnn_bf16", [&] { library.run(); });
  } catch (const Error& e) {
    std::string why = e.what();  // one line
    std::replace(why.begin(), why.end(), '"', '\'');
    std::printf(", \"cudnn\": \"%s\"", why.c_str());
  }
  std::printf("}\n");
  std::fflush(stdout);
}

}  // namespace

void measure_attention(int64_t batch, double seconds) {
  for (const AttentionShape& s : kShapes) measure(s, batch, seconds);
}

}  // namespace lowbit::bench
