#pragma once
// The update of one scalar parameter, written once for the CPU loop and the CUDA kernel.

#include <cmath>

#include "tensor/hd/macros.h"

namespace lowbit {

/// One row of the hyper-parameter tensor [slices, kHyperColumns] f32: everything that changes from step to
/// step. It lives in device memory, so that a captured step can be replayed with new values.
struct UpdateHyper {
  float active;  ///< 0: the parameter has no gradient in this step and is skipped
  float keep;    ///< 1 − lr·weight_decay of AdamW, else 1
  float l2;      ///< weight decay added to the gradient (Adam, SGD), else 0
  float step;    ///< lr/(1 − β1^t) of Adam and AdamW, lr of SGD
  float root;    ///< √(1 − β2^t)
};
inline constexpr int kHyperColumns = 5;
static_assert(sizeof(UpdateHyper) == kHyperColumns * sizeof(float));

/// AdamW and Adam:  p *= keep;  m = β1 m + (1−β1) g;  v = β2 v + (1−β2) g²;  p −= step·m/(√v/root + ε)
/// Source: Loshchilov & Hutter 2019 in the operation order of the usual framework implementation.
struct AdamUpdate {
  float beta1, beta2, rest1, rest2, eps;  ///< rest = 1 − β, rounded once from double
  LOWBIT_HD void operator()(float& p, float g, float& m, float& v, const UpdateHyper& h) const {
    g = g + h.l2 * p;
    const float q = p * h.keep;
    m = m * beta1 + rest1 * g;
    v = v * beta2 + rest2 * g * g;
    p = q - h.step * m / (std::sqrt(v) / h.root + eps);
  }
};

/// SGD:  d = g + l2 p;  m = μ m + d;  p −= step·(nesterov ? d + μ m : m)
struct SgdUpdate {
  float momentum, nesterov;  ///< nesterov: 1 or 0
  LOWBIT_HD void operator()(float& p, float g, float& m, float& /*v*/, const UpdateHyper& h) const {
    const float d = g + h.l2 * p;
    m = m * momentum + d;
    const float ahead = d + momentum * m;
    p = p - h.step * (nesterov != 0 ? ahead : m);
  }
};

}  // namespace lowbit
