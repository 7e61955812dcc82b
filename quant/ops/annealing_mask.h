#pragma once
// The arithmetic of confidence-guided annealing (quant/annealing.h), between the gradients and the update of
// one weight tensor. Not recorded on the tape.
//
// Shapes   w [outer, groups, inner], a scale for each group; everything f32
// Mask     t = w/scale − shift,  used thresholds i + ½ with lo ≤ i < i + 1 ≤ hi, where
//          lo = max(least level, ⌈min t − ½⌉), hi = min(largest level, ⌊max t + ½⌋)
//          free = |t − (⌊t⌋ + ½)| ≤ range and ⌊t⌋ + ½ is used; a value exactly on a threshold uses both
//          levels
// Before   frozen = (1 − free)·w,  g ·= free      After   w = free·w + frozen
// Source   Liu et al. 2023 (OFQ), cga.py; docs/methods/ofq.md

#include "tensor/core/kernel_slot.h"
#include "tensor/core/tensor.h"
#include "tensor/hd/math.h"
#include "tensor/hd/row.h"

namespace lowbit {

/// rows = outer · groups runs of `inner` elements; work [rows, 2]; extremes [2] = max t, max −t.
struct AnnealExtremesArgs {
  const float *w, *scale;
  float *work, *extremes;
  int64_t rows, groups, inner;
  float shift;
};
/// One shape; g undefined where the weight has no gradient.
struct AnnealMaskArgs {
  View free, frozen, g, w, scale;
  const float* extremes;
  float shift, range, lo, hi;
};
struct AnnealRestoreArgs {
  View w, free, frozen;
};
extern KernelSlot<AnnealExtremesArgs> anneal_extremes;
extern KernelSlot<AnnealMaskArgs> anneal_mask;
extern KernelSlot<AnnealRestoreArgs> anneal_restore;

struct AnnealExtremesRow {
  AnnealExtremesArgs a;
  template <class Row>
  LOWBIT_HD void operator()(const Row& row, int64_t r) const {
    const float *const w = a.w + r * a.inner, s = a.scale[r % a.groups], shift = a.shift;
    const float most = row.max(a.inner, [=](int64_t i) { return w[i] / s - shift; });
    const float least = row.max(a.inner, [=](int64_t i) { return -(w[i] / s - shift); });
    float* const to = a.work + 2 * r;
    row.once([=] { to[0] = most, to[1] = least; });
  }
};
struct AnnealExtremesAll {
  AnnealExtremesArgs a;
  template <class Row>
  LOWBIT_HD void operator()(const Row& row, int64_t) const {
    const float* const work = a.work;
    const float most = row.max(a.rows, [=](int64_t i) { return work[2 * i]; });
    const float least = row.max(a.rows, [=](int64_t i) { return work[2 * i + 1]; });
    float* const to = a.extremes;
    row.once([=] { to[0] = most, to[1] = least; });
  }
};

struct AnnealMask {
  const float* extremes;
  float shift, range, lo, hi;
  explicit AnnealMask(const AnnealMaskArgs& a)
      : extremes(a.extremes), shift(a.shift), range(a.range), lo(a.lo), hi(a.hi) {}

  template <class T>
  LOWBIT_HD T free(T w, T s) const {
    const T first = -math::floor(T(extremes[1]) + T(0.5)), last = math::floor(T(extremes[0]) + T(0.5));
    const T low = first > T(lo) ? first : T(lo), high = last < T(hi) ? last : T(hi);
    const T t = w / s - T(shift), below = math::floor(t);
    const bool inside = below >= low && below + T(1) <= high;
    return inside && math::abs(t - below - T(0.5)) <= T(range) ? T(1) : T(0);
  }
  template <class T>
  LOWBIT_HD Pack<T, 2> operator()(T w, T s) const {
    const T f = free(w, s);
    return {{f, (T(1) - f) * w}};
  }
  template <class T>
  LOWBIT_HD Pack<T, 3> operator()(T w, T s, T g) const {
    const T f = free(w, s);
    return {{f, (T(1) - f) * w, g * f}};
  }
};
struct AnnealRestore {
  template <class T>
  LOWBIT_HD T operator()(T w, T free, T frozen) const {
    return w * free + frozen;
  }
};

}  // namespace lowbit
