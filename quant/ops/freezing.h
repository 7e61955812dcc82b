#pragma once
// What iterative freezing (quant/freezing.h) does to the weights. Not recorded on the tape.
//
// Shapes    w [outer, groups, inner], a scale for each group; f32 but for masks (u8) and codes (i8 or u8)
// Pin       held = frozen;  w = scale·(code + shift + e) where held; e = ¼ on the lowest code, −¼ on the
//           highest: inside the levels
// Gradient  ds[index[k]] += factor[k]·Σ G·w/scale over the held weights of group k;  then G = 0 there
// Order     Σ in f64: row rule over runs of `inner`, then over them; row rule over the groups of one scale

#include "tensor/core/kernel_slot.h"
#include "tensor/core/tensor.h"
#include "tensor/hd/math.h"
#include "tensor/hd/row.h"

namespace lowbit {

/// One shape.
struct FreezePinArgs {
  View w, held, frozen, frozen_code, scale;
  float shift, lo, hi;
};
/// Packed. rows = outer · groups runs of `inner` elements.
struct FreezeGradientArgs {
  float* g;
  const float *w, *scale;
  const uint8_t* held;
  const float* factor;   ///< [groups]
  const int64_t* index;  ///< [groups]
  float* ds;             ///< [scales]; scales = 0: not wanted
  double* work;          ///< [rows + groups]
  int64_t rows, groups, inner, scales;
};
extern KernelSlot<FreezePinArgs> freeze_pin;
extern KernelSlot<FreezeGradientArgs> freeze_gradient;

struct FreezePin {
  float shift, lo, hi;
  template <class C>
  LOWBIT_HD Pack<float, 2> operator()(float w, uint8_t frozen, C code, float scale) const {
    constexpr float kInside = 0.25f;  // of a level
    const float k = float(code), inside = k == hi ? -kInside : (k == lo ? kInside : 0.f);
    return {{frozen ? (k + shift + inside) * scale : w, frozen ? 1.f : 0.f}};
  }
};

struct FreezeGradientRow {
  FreezeGradientArgs a;
  template <class Row>
  LOWBIT_HD void operator()(const Row& row, int64_t r) const {
    float* const g = a.g + r * a.inner;
    const float *const w = a.w + r * a.inner, s = a.scale[r % a.groups];
    const uint8_t* const held = a.held + r * a.inner;
    const double sum = row.sum(a.inner, [=](int64_t i) {
      const float v = g[i];
      const double part = double(v) * double(w[i] / s);
      g[i] = held[i] ? 0.f : v;
      return held[i] ? part : 0.0;
    });
    double* const to = a.work + r;
    row.once([=] { *to = sum; });
  }
};
/// Of group k, from its runs.
struct FreezeGradientGroup {
  FreezeGradientArgs a;
  template <class Row>
  LOWBIT_HD void operator()(const Row& row, int64_t k) const {
    const double* const runs = a.work + k;
    const int64_t groups = a.groups;
    const double sum = row.sum(a.rows / groups, [=](int64_t o) { return runs[o * groups]; });
    double* const to = a.work + a.rows + k;
    row.once([=] { *to = sum; });
  }
};
/// Of scale j, from the groups that use it.
struct FreezeGradientScale {
  FreezeGradientArgs a;
  template <class Row>
  LOWBIT_HD void operator()(const Row& row, int64_t j) const {
    const double* const sums = a.work + a.rows;
    const float* const factor = a.factor;
    const int64_t* const index = a.index;
    const float sum = row.sum(a.groups, [=](int64_t k) {
      const float part = float(double(factor[k]) * sums[k]);
      return index[k] == j ? part : 0.f;
    });
    float* const to = a.ds + j;
    row.once([=] { *to += sum; });
  }
};

}  // namespace lowbit
