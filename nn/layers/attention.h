#pragma once
#include "nn/layers/linear.h"

namespace lowbit {

/// Multi-head self-attention.   x [B, N, C] → [B, N, C].
///   t = in(x);  q, k, v = projections of t, each through its slot;  p = probs( softmax(q kᵀ · D^-½) )
///   y = proj( context( p v ) )
/// Slots: in, q, k, v, probs, context.
class Attention : public Module {
 public:
  struct Options {
    int64_t width = 192, heads = 3;
    bool qkv_bias = true;
    /// One fused `qkv` (timm, rows q, k, v) or three layers `proj_q`, `proj_k`, `proj_v` (VVTQ).
    bool split_qkv = false;
    double dropout = 0, proj_dropout = 0;
  };
  Attention(const Options& o, Generator& init);
  Variable operator()(const Variable& x);

 private:
  Options options_;
  Slot& in_;
  Linear* qkv_ = nullptr;                                             // [3C, C]
  Linear *proj_q_ = nullptr, *proj_k_ = nullptr, *proj_v_ = nullptr;  // [C, C] each
  Slot &q_, &k_, &v_, &probs_, &context_;
  Linear& proj_;
};

}  // namespace lowbit
