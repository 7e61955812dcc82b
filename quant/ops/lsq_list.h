#pragma once
// The parameters of many LSQ quantizers and the codes of their weights in three passes over lists, in place
// of five kernels for each: on a device most of these kernels would do next to nothing. The same bits as
// quant/ops/lsq.h and quant/ops/l1_factor.h one by one.

#include "quant/ops/l1_factor.h"
#include "quant/ops/lsq.h"

namespace lowbit {

/// One quantizer with one scale. Lists lie in device memory, as words of eight bytes.
struct LsqListItem {
  float* alpha;       ///< [widths]: the scales of all bit-widths, clamped in place to ≥ smallest
  const float* beta;  ///< [widths] or null: offsets
  int64_t widths, slot;
  int64_t first, last;      ///< its chunks; none: `factor` is given and there are no codes
  double factor, smallest;  ///< factor 0: from the L1 norm of the chunks
  int64_t published;        ///< the scale is (s − s·factor) + s·factor
  int64_t lo, hi;           ///< levels
};
/// At most kChunk elements of a weight.
struct LsqListChunk {
  const float* w;
  int8_t* codes;
  int64_t n, item;
};
/// What a quantizer uses in this step.
struct LsqListResult {
  float scale, offset, factor;
};

/// Where the gradient of a weight's codes is and those of weight and scale go, by item: for a device in the
/// arguments of the kernel, since the addresses of gradients change from step to step.
struct LsqListGrad {
  const float* gy;
  float *dw, *dalpha;  ///< of the shape of the weight, [widths]
};
inline constexpr int64_t kListGrads = 128;  ///< of one call

struct LsqListBwdArgs {
  const LsqListItem* items;
  const LsqListChunk* chunks;
  const LsqListResult* results;
  Pack<float, 1>* sums;  ///< [chunks of the list]
  int64_t first, count;  ///< items of this call
  int64_t chunk_first, chunk_count;
  MaskRule mask;
  TiePolicy ties;
  LsqListGrad grads[kListGrads];  ///< of item first + i; gy null: not in this call
};
extern KernelSlot<LsqListBwdArgs> lsq_list_bwd;

struct LsqListArgs {
  const LsqListItem* items;
  const LsqListChunk* chunks;
  int64_t item_count, chunk_count;
  float* sums;             ///< [chunk_count]
  LsqListResult* results;  ///< [item_count]
  bool l1;                 ///< some item needs sums
};
extern KernelSlot<LsqListArgs> lsq_list;

/// From the L1 norm of a weight, where the item needs it, to its results. Clamping is left to the caller.
LOWBIT_HD LsqListResult lsq_list_result(const LsqListItem& item, float l1) {
  const float smallest = float(item.smallest);
  float s = item.alpha[item.slot];
  if (smallest > 0 && s < smallest) s = smallest;
  const float factor = item.factor > 0 ? float(item.factor) : lsq_l1_factor(l1, 1, int32_t(item.hi));
  const float part = s * factor;
  return {item.published ? (s - part) + part : s, item.beta ? item.beta[item.slot] : 0.f, factor};
}
LOWBIT_HD void lsq_list_clamp(const LsqListItem& item, int64_t i) {
  const float smallest = float(item.smallest);
  if (smallest > 0 && item.alpha[i] < smallest) item.alpha[i] = smallest;
}
LOWBIT_HD void lsq_list_code(const LsqListItem& item, const LsqListResult& r, const LsqListChunk& c,
                             int64_t i) {
  using Ste = UniformSte<MaskRule::clip_then_round>;  // all mask rules give the same levels
  const QParam<float> p{r.scale, r.offset, float(item.lo), float(item.hi)};
  c.codes[i] = int8_t(int32_t(Ste::level(c.w[i], p, RoundEven{}, i)));
}

/// The summand of the scale's gradient of element i of a chunk, whose own gradient it stores.
template <MaskRule M>
struct LsqListElement {
  const float *x, *gy;
  float* dx;
  QParam<float> p;
  TieWeights<float> tie;
  LOWBIT_HD LsqListElement(const LsqListBwdArgs& a, int64_t k)
      : x(a.chunks[k].w), tie(TieWeights<float>::of(a.ties)) {
    const LsqListItem& item = a.items[a.chunks[k].item];
    const LsqListResult& r = a.results[a.chunks[k].item];
    const LsqListGrad& g = a.grads[a.chunks[k].item - a.first];
    const int64_t at = x - a.chunks[item.first].w;
    gy = g.gy + at, dx = g.dw + at;
    p = {r.scale, r.offset, float(item.lo), float(item.hi)};
  }
  LOWBIT_HD float operator()(int64_t i) const { return lsq_bwd_element<M, false>(x[i], gy, dx, i, p, tie); }
};
/// Entry i of the scales' gradients of an item whose sum is known.
LOWBIT_HD void lsq_list_finish(const LsqListBwdArgs& a, int64_t item, float sum, int64_t i) {
  const bool used = i == a.items[item].slot;
  a.grads[item - a.first].dalpha[i] = used ? 0 + a.results[item].factor * sum : 0.f;
}

}  // namespace lowbit
