#pragma once
// Values that ops put off (Deferred), for ops that have one kernel for the chain. Included by .cpp files of
// ops only.

#include "autograd/core/variable.h"
#include "autograd/ops/layer_norm.h"
#include "autograd/ops/operand.h"

namespace lowbit {

/// Attention scores of codes: factor · q · kᵀ of every head, on integers, plus the bias where there is one.
/// q [B, H or 1, N, D]; k [B, H, M, D]; bias [R, H, N, M]
struct DeferredScores final : Deferred {
  Coded q, k;
  Tensor bias;
  double factor = 1;
  Tensor values() const override;
};

/// Softmax over the last dimension of values that were put off as well.
struct DeferredSoftmax final : Deferred {
  Variable x;
  Tensor values() const override;
};

/// Layer norm of x; mean and rstd are written by whoever computes it.
struct DeferredLayerNorm final : Deferred {
  Tensor x, gamma, beta, mean, rstd;
  View mean_view, rstd_view;  ///< taken before the tensors were saved, since writing counts as a change
  double eps = 0;
  mutable bool computed = false;  ///< mean and rstd are there
  /// All but y, for a kernel that is called with them.
  LayerNormFwdArgs args() const;
  Tensor values() const override;
};

/// gelu(x).
struct DeferredGelu final : Deferred {
  Variable x;
  Tensor values() const override;
};

/// Codes [B, H, N, M] of attention probabilities.
struct DeferredProbs : Deferred {
  bool coded() const final { return true; }
  /// y = p · v of every head in the same kernel, and the codes of p where they are kept; false where that is
  /// not possible.   y [B, H, N, D] of any strides, v [B, H, M, D]
  virtual bool context(Tensor& y, const Operand& v, Coded* keep) const = 0;
};

}  // namespace lowbit
