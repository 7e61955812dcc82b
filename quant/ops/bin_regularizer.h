#pragma once
// Oscillation-aware bin regularisation of a quantized weight.
//   u = w / a,  c = clamp(u, lo, hi),  w_c = c·a,  q = rint(c),  w_q = q·a (no gradient)
//   R = mean((w_q − w_c)²) + Σ_k [n_k > 1] · Var_unbiased(w_c over the n_k elements of bin k)
// Shapes   w any shape, f32 or f64; scale [S], slot s is used; R [1]
// Grad     dR/dw_c = 2(w_c − w_q)/N + 2(w_c − mean_k)/(n_k − 1);  dw = m·dR/dw_c,  da = g·Σ dR/dw_c·(c −
// m·u),
//          m = 1 inside (lo, hi), ½ on the edges, 0 outside
// Bins     an element belongs to bin k = q; the published membership test (q·a)/a == k fails for some k by
// rounding and
//          such a bin contributes nothing (MembershipTest::published); `exact` keeps every bin
// Saves    w (shared)     Order  serial sums in f64
// Source   VVTQ, util_loss.py BinReg; its first term is a mean where the paper has a sum
// (docs/methods/vvtq.md) Errors   value: slot outside the scales

#include <cstdint>

#include "quant/ops/lsq.h"

namespace lowbit {

enum class MembershipTest : uint8_t { published, exact };

struct BinRegularizerSettings {
  Levels levels;
  int slot = 0;                 ///< of the scale
  double grad_scale = 1;        ///< g
  bool published_scale = true;  ///< a = (s − s·g) + s·g
  MembershipTest membership = MembershipTest::published;
};

Variable bin_regularizer(const Variable& w, const Variable& scale, const BinRegularizerSettings& s);

}  // namespace lowbit
