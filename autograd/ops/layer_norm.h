#pragma once
#include "tensor/core/kernel_slot.h"
#include "tensor/core/tensor.h"
#include "tensor/hd/macros.h"
#include "tensor/hd/math.h"
#include "tensor/hd/row.h"

namespace lowbit {

class Variable;

/// x, y, gy, dx packed [rows, n]; mean, rstd [rows]; gamma, beta, dgamma, dbeta [n]; one dtype, but x may be
/// bf16 beside f32.
struct LayerNormFwdArgs {
  View y, mean, rstd, x, gamma, beta;
  int64_t rows, n;
  double eps;
};
/// Outputs that nobody wants have null data; dgamma and dbeta are written together. `before`, or null: what
/// dx is added to, possibly its own place. `work` (CUDA only): one pair of sums per column and block of rows.
struct LayerNormBwdArgs {
  View dx, dgamma, dbeta, gy, x, mean, rstd, gamma, before, work;
  int64_t rows, n;
};
/// Two passes over the row: the variance from the differences, not from Σ x². X: type of x.
template <class T, class X = T>
struct LayerNormFwdRow {
  T *y, *mean, *rstd;
  const X* x;
  const T *gamma, *beta;
  int64_t n;
  T eps;
  explicit LayerNormFwdRow(const LayerNormFwdArgs& a)
      : y(a.y.as<T>()),
        mean(a.mean.as<T>()),
        rstd(a.rstd.as<T>()),
        x(a.x.as<X>()),
        gamma(a.gamma.as<T>()),
        beta(a.beta.as<T>()),
        n(a.n),
        eps(T(a.eps)) {}
  template <class Row>
  LOWBIT_HD void operator()(const Row& row, int64_t r) const {
    const X* const x_r = x + r * n;
    const T *const w = gamma, *const b = beta;
    T* const y_r = y + r * n;
    const T m = row.sum(n, [=](int64_t i) { return T(x_r[i]); }) / T(n);
    const T variance = row.sum(n, [=](int64_t i) { return (T(x_r[i]) - m) * (T(x_r[i]) - m); }) / T(n);
    const T s = math::rsqrt(variance + eps);
    row.for_each(n, [=](int64_t i) { y_r[i] = (T(x_r[i]) - m) * s * w[i] + b[i]; });
    T *const mean_r = mean + r, *const rstd_r = rstd + r;
    row.once([=] { *mean_r = m, *rstd_r = s; });
  }
};

template <class T, class X = T>
struct LayerNormBwdRow {
  T* dx;
  const X* x;
  const T *gy, *mean, *rstd, *gamma, *before;
  int64_t n;
  explicit LayerNormBwdRow(const LayerNormBwdArgs& a)
      : dx(a.dx.as<T>()),
        x(a.x.as<X>()),
        gy(a.gy.as<T>()),
        mean(a.mean.as<T>()),
        rstd(a.rstd.as<T>()),
        gamma(a.gamma.as<T>()),
        before(a.before.as<T>()),
        n(a.n) {}
  template <class Row>
  LOWBIT_HD void operator()(const Row& row, int64_t r) const {
    const X* const x_r = x + r * n;
    const T *const gy_r = gy + r * n, *const w = gamma;
    T* const d = dx + r * n;
    const T m = mean[r], s = rstd[r];
    const Pack<T, 2> c = row.sum(n, [=](int64_t i) {
      const T g = gy_r[i] * w[i];
      return Pack<T, 2>{{g, g * ((T(x_r[i]) - m) * s)}};
    });
    const T c1 = c[0] / T(n), c2 = c[1] / T(n);
    const auto gradient = [=](int64_t i) { return s * (gy_r[i] * w[i] - c1 - (T(x_r[i]) - m) * s * c2); };
    if (before) {
      const T* const b = before + r * n;
      row.for_each(n, [=](int64_t i) { d[i] = b[i] + gradient(i); });
    } else {
      row.for_each(n, [=](int64_t i) { d[i] = gradient(i); });
    }
  }
};

/// The summands of dgamma and dbeta at row m, column i.
template <class T, class X = T>
struct LayerNormGainColumn {
  const X* x;
  const T *gy, *mean, *rstd;
  int64_t n;
  explicit LayerNormGainColumn(const LayerNormBwdArgs& a)
      : x(a.x.as<X>()), gy(a.gy.as<T>()), mean(a.mean.as<T>()), rstd(a.rstd.as<T>()), n(a.n) {}
  LOWBIT_HD Pack<T, 2> operator()(int64_t m, int64_t i) const {
    const T g = gy[m * n + i];
    return {{g * ((T(x[m * n + i]) - mean[m]) * rstd[m]), g}};
  }
};

extern KernelSlot<LayerNormFwdArgs> layer_norm_fwd;
extern KernelSlot<LayerNormBwdArgs> layer_norm_bwd;

/// Layer normalisation over the last dimension: y = (x − mean)·rstd·gamma + beta,  rstd = 1/√(var + eps).
/// Shapes  x, y [..., C];  gamma, beta [C];  eps > 0
/// Grad    dx = rstd·(g − mean(g) − x̂·mean(g·x̂)),  g = gy·gamma,  x̂ = (x − mean)·rstd
///         dgamma = Σ gy·x̂,  dbeta = Σ gy over the rows
/// Saves   x (shared), gamma (shared), mean and rstd per row; a narrow x is read and kept as bf16
/// Order   statistics: row rule;  dgamma, dbeta: column rule (docs/numerics.md, rules 3 and 4)
/// Source  Ba et al. 2016; biased variance
/// Errors  shape: gamma, beta;  dtype, device: operands differ;  value: eps
Variable layer_norm(const Variable& x, const Variable& gamma, const Variable& beta, double eps);

}  // namespace lowbit
