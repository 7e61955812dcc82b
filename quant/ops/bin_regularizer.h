#pragma once
// Oscillation-aware bin regularisation of a quantized weight.
//
// Shapes   w any shape, f32 or f64; scale [S], slot s is used: a; R [1]
// Forward  u = w / a,  c = clamp(u, lo, hi),  w_c = c·a,  q = rint(c),  w_q = q·a (no gradient)
//          R = mean((w_q − w_c)²) + Σ_k [n_k > 1] · Var_unbiased(w_c over the n_k elements of bin k)
// Grad     dR/dw_c = 2(w_c − w_q)/N + 2(w_c − mean_k)/(n_k − 1);  dw = m·dR/dw_c,  m = 1 inside (lo, hi),
//          ½ on the edges, 0 outside;  da = g·Σ dR/dw_c·(c − m·u)
// Bins     an element belongs to bin k = q. The published membership test (q·a)/a == k fails for some k by
//          rounding, and such a bin has no variance (MembershipTest::published); `exact` keeps every bin.
// Saves    w (shared), count and mean of the bins
// Order    all sums in f64; forward: chunks of 4096 elements in increasing order, then the chunks; da: row
//          rule
// Source   VVTQ, util_loss.py BinReg; its first term is a mean where the paper has a sum
//          (docs/methods/vvtq.md)
// Errors   value: slot outside the scales, w without elements; dtype

#include "quant/ops/lsq.h"

namespace lowbit {

enum class MembershipTest : uint8_t { published, exact };

struct BinRegularizerSettings {
  Levels levels;
  int slot = 0;                 ///< of the scale
  double grad_scale = 1;        ///< g
  Tensor factor = {};           ///< [1] f32: g where it lies on the device
  bool published_scale = true;  ///< a = (s − s·g) + s·g
  MembershipTest membership = MembershipTest::published;
};

Variable bin_regularizer(const Variable& w, const Variable& scale, const BinRegularizerSettings& s);

// ---------------------------------------------------------------- maths, host and device

/// What forward and backward share.
struct BinCall {
  View w, scale;  ///< packed
  int64_t slot;
  double g;
  const float* factor;  ///< in place of g; null: g
  int lo, hi;
  bool published_scale, exact;
  LOWBIT_HD int bins() const { return hi - lo + 1; }
};

/// Deviations d = w_c − w_q of the members of a bin. Their variance is that of w_c.
struct BinSums {
  double count, sum, square;
};
/// A bin's part in the gradient: 2(d − mean)·factor. factor = 1/(n − 1), 0 where the bin has no variance.
struct BinMean {
  double mean, factor;
};

template <class T>
struct BinElement {
  T u, c, q;
  double d;
};

LOWBIT_HD double bin_factor(const BinCall& b) { return b.factor ? double(*b.factor) : b.g; }

template <class T>
LOWBIT_HD T bin_scale(const BinCall& b) {
  const T s = static_cast<const T*>(b.scale.data)[b.slot], part = s * T(bin_factor(b));
  return b.published_scale ? (s - part) + part : s;
}

template <class T>
LOWBIT_HD BinElement<T> bin_element(const BinCall& b, T a, int64_t i) {
  const T u = static_cast<const T*>(b.w.data)[i] / a, top = u < T(b.hi) ? u : T(b.hi);
  const T c = top > T(b.lo) ? top : T(b.lo), q = math::rint(c);
  return {u, c, q, double(c * a) - double(q * a)};
}

LOWBIT_HD void bin_add(BinSums& s, double d) {
  s.count += 1;
  s.sum += d;
  s.square += d * d;
}

/// From the sums of every chunk, [chunks, bins], to R and the bins' means.
template <class T>
LOWBIT_HD void bin_finish(const BinCall& b, const BinSums* chunk_sums, int64_t chunks, int64_t n,
                          BinMean* means, T* result) {
  const T a = bin_scale<T>(b);
  double squares = 0, variances = 0;
  for (int k = 0; k < b.bins(); ++k) {
    BinSums s{0, 0, 0};
    for (int64_t c = 0; c < chunks; ++c) {
      const BinSums& part = chunk_sums[c * b.bins() + k];
      s.count += part.count, s.sum += part.sum, s.square += part.square;
    }
    squares += s.square;
    const T level = T(b.lo + k);
    const bool kept = s.count > 1 && (b.exact || (level * a) / a == level);
    const double mean = kept ? s.sum / s.count : 0, factor = kept ? 1 / (s.count - 1) : 0;
    variances += (s.square - s.sum * mean) * factor;
    means[k] = {mean, factor};
  }
  *result = T(squares / double(n) + variances);
}

/// dw of one element, stored where dw is given; returns its summand of da / g.
template <class T>
LOWBIT_HD double bin_backward(const BinCall& b, const BinMean* means, T gy, T* dw, double n, T a, int64_t i) {
  const BinElement<T> e = bin_element(b, a, i);
  const BinMean m = means[int(e.q) - b.lo];
  const double d = double(gy) * (2 * e.d / n + 2 * (e.d - m.mean) * m.factor);
  const T mask = e.u > T(b.lo) && e.u < T(b.hi) ? T(1) : (e.u == T(b.lo) || e.u == T(b.hi) ? T(0.5) : T(0));
  if (dw) dw[i] = T(d) * mask;
  return d * double(e.c - mask * e.u);
}

// ---------------------------------------------------------------- kernels

struct BinFwdArgs {
  BinCall b;
  View sums;   ///< workspace [chunks, bins, 3] f64
  View means;  ///< [bins, 2] f64
  View y;      ///< [1]
};
struct BinBwdArgs {
  BinCall b;
  View means, gy, dw;  ///< dw.data null: not wanted
  View da;             ///< f64 [bin_workspace()]: the sum, then workspace
  View dscale;         ///< [S], zeros; data null: not wanted
};
extern KernelSlot<BinFwdArgs> bin_regularizer_fwd;
extern KernelSlot<BinBwdArgs> bin_regularizer_bwd;

inline int64_t bin_workspace(int64_t n) { return 2 * ceil_div(n, kChunk) + 2; }

}  // namespace lowbit
