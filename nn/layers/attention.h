#pragma once
#include "nn/layers/linear.h"

namespace lowbit {

/// What one use of an attention layer adds to plain attention over all tokens.
struct AttentionUse {
  Variable bias = {};  ///< added to the scores, [W, H, N, N]: sample b takes entry b mod W
  int64_t groups = 1;  ///< consecutive runs of tokens, each attending within itself
  Tensor order = {};   ///< i64 [N]: tokens in another order before they are grouped
};

/// Multi-head self-attention.   x [B, N, C] → [B, N, C].
///   t = in(x);  q, k, v = projections of t, each through its slot;  p = probs( softmax(q kᵀ · D^-½ + bias) )
///   y = proj( context( p v ) )
/// With `qk_reparam` (OFQ, Liu et al. 2023) the two projections of query and key become one matrix per head,
/// which is quantized in their place:
///   M_h = W_q,hᵀ W_k,h [C, C];  z = qkx( t · qk.weight(M)ᵀ ) [B, H, N, C] over the key tokens
///   p[b,h,n,m] = probs( softmax_m( t[b,n] · z[b,m,h] · D^-½ ) )
/// Slots: in, q, k, v, probs, context; with qk_reparam in, qk.weight, qkx, v, probs, context.
class Attention : public Module {
 public:
  struct Options {
    int64_t width = 192, heads = 3;
    bool qkv_bias = true;
    /// One fused `qkv` (timm, rows q, k, v) or three layers `proj_q`, `proj_k`, `proj_v` (VVTQ).
    bool split_qkv = false;
    bool qk_reparam = false;  ///< `q` and `k` without bias, `v` with one (OFQ)
    double dropout = 0, proj_dropout = 0;
  };
  Attention(const Options& o, Generator& init);
  Variable operator()(const Variable& x, const AttentionUse& use = {});

 private:
  /// Null where the layout has no such layer or slot.
  struct Projections {
    Linear* qkv = nullptr;                            // [3C, C]
    Linear *q = nullptr, *k = nullptr, *v = nullptr;  // [C, C] each
    Slot *q_slot = nullptr, *k_slot = nullptr, *fused_slot = nullptr, *qkx_slot = nullptr;
  };
  Projections make_projections(Generator& init);
  Variable reparameterized_probabilities(const Variable& t, double factor, const Variable& bias);
  Options options_;
  Slot& in_;
  Projections projections_;
  Slot &v_, &probs_, &context_;
  Linear& proj_;
};

}  // namespace lowbit
