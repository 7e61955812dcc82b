#pragma once
// Pulls weights to the middle of their bins (Nagel et al. 2022).
//
// Shapes   w any, its quantized values w_q the same; a scale s for each index of `axis` (negative;
//          Coded::kPerTensor: one); L [1]
// Forward  L = Σ (w_q − clamp(w, lo·s, hi·s))²
// Grad     dw = 2·gy·(w − w_q) where lo·s ≤ w ≤ hi·s, else 0; none to w_q and s
// Saves    w (shared), w_q, s     Order  row rule over runs of one scale (one scale: over the last
//          dimension), then over their list
// Errors   shape, dtype

#include "tensor/core/kernel_slot.h"
#include "tensor/core/tensor.h"
#include "tensor/hd/row.h"

namespace lowbit {

class Variable;

Variable dampening(const Variable& w, const Tensor& w_q, const Tensor& s, int axis, int lo, int hi);

/// Packed, one dtype. w, w_q, dw: rows of `inner`; s [groups]: row r has that of r mod groups.
struct DampeningArgs {
  View w, w_q, s;
  int64_t rows, groups, inner;
  double lo, hi;
};
struct DampeningFwdArgs {
  DampeningArgs of;
  View y, work;  ///< [1], [rows]
};
struct DampeningBwdArgs {
  DampeningArgs of;
  View dw, gy;
};
extern KernelSlot<DampeningFwdArgs> dampening_fwd;
extern KernelSlot<DampeningBwdArgs> dampening_bwd;

/// Row r of the weights and the ends of its range.
template <class T>
struct DampeningRun {
  const T *w, *q;
  T lo, hi;
  LOWBIT_HD DampeningRun(const DampeningArgs& a, int64_t r)
      : w(static_cast<const T*>(a.w.data) + r * a.inner), q(static_cast<const T*>(a.w_q.data) + r * a.inner) {
    const T s = static_cast<const T*>(a.s.data)[r % a.groups];
    lo = T(a.lo) * s, hi = T(a.hi) * s;
  }
};
template <class T>
struct DampeningFwdRow {
  DampeningFwdArgs a;
  template <class Row>
  LOWBIT_HD void operator()(const Row& row, int64_t r) const {
    const DampeningRun<T> of(a.of, r);
    const T sum = row.sum(a.of.inner, [=](int64_t i) {
      const T top = of.w[i] < of.hi ? of.w[i] : of.hi, d = (top > of.lo ? top : of.lo) - of.q[i];
      return d * d;
    });
    T* const to = static_cast<T*>(a.work.data) + r;
    row.once([=] { *to = sum; });
  }
};
template <class T>
struct DampeningFwdTotal {
  DampeningFwdArgs a;
  template <class Row>
  LOWBIT_HD void operator()(const Row& row, int64_t) const {
    const T* const sums = static_cast<const T*>(a.work.data);
    const T sum = row.sum(a.of.rows, [=](int64_t r) { return sums[r]; });
    T* const to = static_cast<T*>(a.y.data);
    row.once([=] { *to = sum; });
  }
};
template <class T>
struct DampeningBwdRow {
  DampeningBwdArgs a;
  template <class Row>
  LOWBIT_HD void operator()(const Row& row, int64_t r) const {
    const DampeningRun<T> of(a.of, r);
    const T factor = T(2) * *static_cast<const T*>(a.gy.data);
    T* const dw = static_cast<T*>(a.dw.data) + r * a.of.inner;
    row.for_each(a.of.inner, [=](int64_t i) {
      const T v = of.w[i], d = factor * (v - of.q[i]);
      dw[i] = v >= of.lo && v <= of.hi ? d : T(0);
    });
  }
};

}  // namespace lowbit
