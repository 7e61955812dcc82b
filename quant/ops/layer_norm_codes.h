#pragma once
// Layer normalisation and the quantizer behind it in one pass over a row: x → codes.
//
// Shapes   x [..., C], f32 or bf16 (narrow), gamma, beta [C]; codes like x; groups that are the same along
//          a row, or one per column
// Forward  the composition of layer_norm and fake_quant_lsq, bit for bit; the values are not written
// Grad     that of the composition: backward makes the values again (Node::replay)
// Saves    as the composition
// Order    row rule for the statistics
// Applies  where fake_quant_lsq is given a layer norm that nobody has asked for: on CUDA. On the CPU, where
//          it was 5 to 20 % slower than the two passes, layer_norm puts nothing off
// Source   Ba et al. 2016; Esser et al. 2020 (LSQ)
// Errors   those of fake_quant_lsq

#include "autograd/ops/layer_norm.h"
#include "quant/ops/lsq.h"

namespace lowbit {

struct LayerNormCodesArgs {
  LayerNormFwdArgs norm;  ///< y.data null
  LsqFwdArgs quant;       ///< c.x unused; y the codes
};
extern KernelSlot<LayerNormCodesArgs> layer_norm_codes;

/// Codes of type Out of one row of x of type X. Bad: what is done with the number of values that are not
/// finite.
template <class Out, class X, class Bad>
struct LayerNormCodesRow {
  LayerNormFwdArgs a;
  LsqCall c;
  Out* codes;
  float shift;
  Bad bad;
  template <class Row>
  LOWBIT_HD void operator()(const Row& row, int64_t r) const {
    const int64_t n = a.n;
    const X* const x = lsq_data<X>(a.x) + r * n;
    const float *const w = lsq_data<float>(a.gamma), *const b = lsq_data<float>(a.beta),
                       *const before = lsq_data<float>(c.before);
    Out* const to = codes + r * n;
    const float m = row.sum(n, [=](int64_t i) { return float(x[i]); }) / float(n);
    const float variance =
        row.sum(n, [=](int64_t i) { return (float(x[i]) - m) * (float(x[i]) - m); }) / float(n);
    const float s = math::rsqrt(variance + float(a.eps)), zero = shift;
    // the same expressions as LayerNormFwdRow and the quantizer have
    const auto code = [=](int64_t i, float v, QParam<float> p) {
      using Ste = UniformSte<MaskRule::clip_then_round>;  // all mask rules give the same levels
      to[i] = Out(int32_t(Ste::level(v, p, RoundEven{}, i) - zero));
      return math::abs(v) <= 3.402823466e38f ? 0.f : 1.f;
    };
    const LsqCall call = c;
    float lost;
    if (c.inner == 1 && c.groups > 1) {
      lost = row.sum(n, [=](int64_t i) {
        const float y = (float(x[i]) - m) * s * w[i] + b[i];
        return code(i, before ? y + before[i] : y, lsq_param<float>(call, i));
      });
    } else {
      const QParam<float> p = lsq_param<float>(c, r * n / c.inner % c.groups);
      if (before)
        lost = row.sum(
            n, [=](int64_t i) { return code(i, (float(x[i]) - m) * s * w[i] + b[i] + before[i], p); });
      else
        lost = row.sum(n, [=](int64_t i) { return code(i, (float(x[i]) - m) * s * w[i] + b[i], p); });
    }
    float *const mean = lsq_data<float>(a.mean) + r, *const rstd = lsq_data<float>(a.rstd) + r;
    const Bad count = bad;
    row.once([=] { *mean = m, *rstd = s, count(lost); });
  }
};

}  // namespace lowbit
