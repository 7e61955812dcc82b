#pragma once
// The kernels of this folder: passes over arenas. What happens to one scalar is written once for both
// devices.

#include <cmath>

#include "tensor/core/kernel_slot.h"
#include "tensor/core/tensor.h"
#include "tensor/hd/row.h"

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

/// Work list of a pass: rows {slice, begin, end} of at most kUpdateChunk elements each.
template <class Update>
struct UpdateArgs {
  float *p, *m, *v;  ///< v null for updates with one moment
  const float* g;
  const int64_t* chunks;
  int64_t chunk_count;
  const UpdateHyper* hyper;
  Update update;
};
inline constexpr int64_t kUpdateChunk = 8192;
extern KernelSlot<UpdateArgs<AdamUpdate>> adam_update;
extern KernelSlot<UpdateArgs<SgdUpdate>> sgd_update;

/// e = keep·e + rest·w: the step of a running average.
struct Blend {
  float keep, rest;
  template <class T>
  LOWBIT_HD T operator()(T e, T w) const {
    return e * keep + rest * w;
  }
};
/// One average of several tensors in one pass: rows {address of e, address of w, elements} of f32 tensors.
struct BlendArgs {
  const int64_t* rows;
  int64_t count, most;  ///< rows; elements of the largest
  Blend f;
};
LOWBIT_HD void blend_element(const BlendArgs& a, int64_t row, int64_t i) {
  float* const e = reinterpret_cast<float*>(a.rows[3 * row]);
  e[i] = a.f(e[i], reinterpret_cast<const float*>(a.rows[3 * row + 1])[i]);
}
extern KernelSlot<BlendArgs> blend;

/// Rows {slice, begin, end} of at most kChunk elements of one slice each, in order; slices without a gradient
/// have no rows.
struct NormRows {
  const int64_t* rows;
  int64_t count;
  const int64_t* first;  ///< [slices + 1]: the rows of a slice
  int64_t slices;
};
/// norm[0] = √Σ g², the sum of a slice by the row rule, slices added in order in f64;
/// norm[1] = min(1, limit/(norm[0] + 1e-6)).
struct GradientNormArgs {
  NormRows r;
  const float* g;
  float* work;  ///< [rows + slices]
  double* norm;
  double limit;
};
/// g *= norm[1], rounded to f32, where that is below 1.
struct NormClipArgs {
  NormRows r;
  float* g;
  const double* norm;
};
extern KernelSlot<GradientNormArgs> gradient_norm_kernel;
extern KernelSlot<NormClipArgs> norm_clip;

LOWBIT_HD void finish_norm(const GradientNormArgs& a) {
  double total = 0;
  for (int64_t s = 0; s < a.r.slices; ++s)
    if (a.r.first[s + 1] > a.r.first[s]) total += double(a.work[a.r.count + s]);
  a.norm[0] = std::sqrt(total);
  const double factor = a.limit / (a.norm[0] + 1e-6);
  a.norm[1] = factor < 1 ? factor : 1;
}

/// Adaptive clipping of g [units, n] by the norms of w, one row per unit; see ClipMode::agc.
struct AdaptiveClip {
  float* g;
  const float* w;
  int64_t units, n;
  float limit;
  template <class Row>
  LOWBIT_HD void operator()(const Row& row, int64_t unit) const {
    float* const grad = g + unit * n;
    const float* const value = w + unit * n;
    const float size = std::sqrt(row.sum(n, [=](int64_t i) { return value[i] * value[i]; }));
    const float norm = std::sqrt(row.sum(n, [=](int64_t i) { return grad[i] * grad[i]; }));
    const float bound = (size < 1e-3f ? 1e-3f : size) * limit;
    if (norm < bound) return;
    const float factor = bound / (norm < 1e-6f ? 1e-6f : norm);
    row.for_each(n, [=](int64_t i) { grad[i] *= factor; });
  }
};
extern KernelSlot<AdaptiveClip> adaptive_clip;

}  // namespace lowbit
