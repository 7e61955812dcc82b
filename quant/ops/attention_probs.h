#pragma once
// Quantized attention in one kernel: integer scores (+ bias) → softmax → codes of the probabilities →
// context.
//
// Shapes   q [B, H or 1, N, D], k, v [B, H, M, D]: codes; scores, probabilities [B, H, N, M];
//          bias [R, H, N, M] or none; context [B, H, N, D]
// Forward  the composition of attention_scores, softmax, fake_quant_lsq and attention_context, bit for bit.
//          Probabilities leave the chip as codes only, and these only where backward needs them
// Grad     from dL/dprobs: scores and probabilities are made again from the codes of q and k, then the
//          gradients of quantizer and softmax in one pass, and the sums for scale, offset and bits
// Saves    codes of q and k, bias (shared)
// Order    row rule for the softmax; the sums of fake_quant_lsq: runs of elements that share a group, cut
//          into chunks of 4096, which may begin inside a row
// Applies  where fake_quant_lsq is given a softmax of integer scores that nobody has asked for, and
//          attention_probs_fit(); otherwise the composition runs
// Source   Esser et al. 2020 (LSQ) for the quantizer; none for the fusion
// Errors   those of fake_quant_lsq

#include "autograd/ops/softmax.h"
#include "quant/ops/lsq.h"
#include "tensor/engine/gemm_int8.h"

namespace lowbit {

/// The codes of softmax(scores) where x is such a chain, else undefined. Called by fake_quant_lsq.
Variable attention_probs(const Variable& x, const Variable& scale, const Variable& offset,
                         const Variable& nbits, const LsqSettings& s);

// ---------------------------------------------------------------- kernels

/// What both directions share. Views of [B, H, N, M] are packed.
struct AttentionProbsCall {
  CodedGemmArgs scores;  ///< m = N, n = M, of B·H batches; c is not written
  LsqCall lsq;           ///< of the probabilities; x unused, one group per row
  const float* bias;     ///< [bias_rows, M], row r of all takes r mod bias_rows; null: none
  int64_t bias_rows;
};

struct AttentionProbsFwdArgs {
  AttentionProbsCall c;
  View codes;             ///< u8 or i8; data null: not wanted
  int shift;              ///< code = level − shift
  CodedGemmArgs context;  ///< m = N, k = M; a.data unused; c null: not wanted
  int64_t* bad;           ///< host counter of probabilities that are not finite; null on devices
};

struct AttentionProbsBwdArgs {
  AttentionProbsCall c;
  View gy, dscores;
  View partial;  ///< workspace of attention_probs_workspace() elements
  View sums;     ///< [3, groups] as LsqBwdArgs; the last two are written where `edges`
  bool edges;
  LsqOutputs out;
};

extern KernelSlot<AttentionProbsFwdArgs> attention_probs_fwd;
extern KernelSlot<AttentionProbsBwdArgs> attention_probs_bwd;

/// Where the sums of the groups come from: runs of `inner` elements in packed order, each cut into chunks.
/// Chunk c is the elements [begin(c), end(c)), and chunks follow each other.
struct ProbsChunks {
  int64_t inner, per_run, count;
  LOWBIT_HD explicit ProbsChunks(const LsqCall& c)
      : inner(c.inner), per_run(ceil_div(c.inner, kChunk)), count(c.outer * c.groups * per_run) {}
  LOWBIT_HD int64_t begin(int64_t c) const { return c / per_run * inner + c % per_run * kChunk; }
  LOWBIT_HD int64_t end(int64_t c) const {
    const int64_t last = (c / per_run + 1) * inner, full = begin(c) + kChunk;
    return full < last ? full : last;
  }
};

/// Elements of AttentionProbsBwdArgs::partial: [3, chunks], [3, runs], and the blocks of the column sum.
inline int64_t attention_probs_workspace(const LsqCall& c) {
  return 3 * (ProbsChunks(c).count + c.outer * c.groups + ceil_div(c.outer, kRowBlock) * c.groups);
}

/// Bytes of shared memory of a block of the CUDA kernels: rows of scores (one copy for each sum), the words
/// of four codes of q and of the probabilities.
inline constexpr int kProbsRows = 16, kProbsPitch = kProbsRows + 8;  ///< the pitch keeps a warp's banks apart
inline constexpr int64_t kProbsFixed = 9 << 10, kProbsShared = 64 << 10;
LOWBIT_HD constexpr int64_t probs_words(int64_t codes) { return ceil_div(codes, 64) * 16; }
constexpr int64_t probs_shared(int64_t keys, int64_t depth, int copies, bool codes) {
  return 4 *
         (copies * kProbsRows * keys + (probs_words(depth) + (codes ? probs_words(keys) : 0)) * kProbsPitch);
}
/// Whether both directions fit into what every supported device gives a block. `edges`: offset or bits are
/// trained.
constexpr bool attention_probs_fit(int64_t keys, int64_t depth, bool edges) {
  const int64_t forward = probs_shared(keys, depth, 1, true),
                backward = probs_shared(keys, depth, edges ? 3 : 1, false);
  return kProbsFixed + (forward < backward ? backward : forward) <= kProbsShared;
}

/// Row r of all: scores become probabilities in place.
template <class Row>
LOWBIT_HD void attention_probs_softmax(const Row& row, const AttentionProbsCall& c, int64_t r, float* p) {
  const int64_t n = c.scores.n;
  if (c.bias) {
    const float* const bias = c.bias + r % c.bias_rows * n;
    row.for_each(n, [=](int64_t j) { p[j] += bias[j]; });
  }
  SoftmaxFwdRow<float>{p, p, n}(row, 0);
}

/// One row: probabilities become codes. put(j, level − shift).
template <class Row, class Put>
LOWBIT_HD void attention_probs_row(const Row& row, const float* p, int64_t n, QParam<float> q, float shift,
                                   Put put) {
  using Ste = UniformSte<MaskRule::clip_then_round>;  // all mask rules give the same levels
  row.for_each(n, [=](int64_t j) { put(j, int32_t(Ste::level(p[j], q, RoundEven{}, j) - shift)); });
}

/// One row of the gradient: gy → d, where d is given; what the element adds to each sum goes to e[0], and to
/// above and below with Edges. p may be e.
template <MaskRule M, bool Edges>
struct AttentionProbsBwdRow {
  const float *p, *gy;
  float *d, *e, *above, *below;
  int64_t n;
  QParam<float> q;
  TieWeights<float> tie;
  template <class Row>
  LOWBIT_HD void operator()(const Row& row) const {
    const AttentionProbsBwdRow r = *this;
    const float dot =
        row.sum(n, [=](int64_t j) { return UniformSte<M>::bwd(r.gy[j], r.p[j], r.q, r.tie).dx * r.p[j]; });
    const auto each = [=](int64_t j, auto keep) {  // a type, since d may be null
      const float y = r.p[j];
      const QGrad<float> g = UniformSte<M>::bwd(r.gy[j], y, r.q, r.tie);
      if constexpr (decltype(keep)::value) r.d[j] = y * (g.dx - dot);
      r.e[j] = g.dscale;
      if constexpr (Edges) r.above[j] = g.above, r.below[j] = g.below;
    };
    if (d)
      row.for_each(n, [=](int64_t j) { each(j, std::true_type{}); });
    else
      row.for_each(n, [=](int64_t j) { each(j, std::false_type{}); });
  }
};

}  // namespace lowbit
