#pragma once
#include "autograd/core/variable.h"

namespace lowbit {

/// Pulls weights to the middle of their bins (Nagel et al. 2022): L = Σ (w_q − clamp(w, lo·s, hi·s))².
/// Shapes  w, its quantized values w_q any one shape; scales s with extents of w or 1; L [1]
/// Grad    dw = 2·gy·(w − w_q) inside (lo·s, hi·s), 0 outside; none to w_q and s
/// Errors  shape, dtype, device: not broadcastable
Variable dampening(const Variable& w, const Tensor& w_q, const Tensor& s, int lo, int hi);

}  // namespace lowbit
