#pragma once
#include "tensor/core/kernel_slot.h"
#include "tensor/core/tensor.h"
#include "tensor/hd/macros.h"
#include "tensor/hd/math.h"

namespace lowbit {

class Variable;

template <class T>
struct SoftmaxFwdRow {
  T* y;
  const T* x;
  int64_t n;
  template <class Row>
  LOWBIT_HD void operator()(const Row& row, int64_t r) const {
    const T* const x_r = x + r * n;
    T* const y_r = y + r * n;
    const T top = row.max(n, [=](int64_t i) { return x_r[i]; });
    const T total = row.sum(n, [=](int64_t i) { return y_r[i] = math::exp(x_r[i] - top); });
    row.for_each(n, [=](int64_t i) { y_r[i] /= total; });
  }
};
template <class T>
struct SoftmaxBwdRow {
  T* dx;
  const T *gy, *y;
  int64_t n;
  template <class Row>
  LOWBIT_HD void operator()(const Row& row, int64_t r) const {
    const T *const g = gy + r * n, *const y_r = y + r * n;
    T* const d = dx + r * n;
    const T dot = row.sum(n, [=](int64_t i) { return g[i] * y_r[i]; });
    row.for_each(n, [=](int64_t i) { d[i] = y_r[i] * (g[i] - dot); });
  }
};

template <class T>
struct LogSoftmaxFwdRow {
  T* y;
  const T* x;
  int64_t n;
  template <class Row>
  LOWBIT_HD void operator()(const Row& row, int64_t r) const {
    const T* const x_r = x + r * n;
    T* const y_r = y + r * n;
    const T top = row.max(n, [=](int64_t i) { return x_r[i]; });
    const T log_sum = math::log(row.sum(n, [=](int64_t i) { return math::exp(x_r[i] - top); }));
    row.for_each(n, [=](int64_t i) { y_r[i] = (x_r[i] - top) - log_sum; });
  }
};
template <class T>
struct LogSoftmaxBwdRow {
  T* dx;
  const T *gy, *y;
  int64_t n;
  template <class Row>
  LOWBIT_HD void operator()(const Row& row, int64_t r) const {
    const T *const g = gy + r * n, *const y_r = y + r * n;
    T* const d = dx + r * n;
    const T total = row.sum(n, [=](int64_t i) { return g[i]; });
    row.for_each(n, [=](int64_t i) { d[i] = g[i] - math::exp(y_r[i]) * total; });
  }
};

/// All packed [rows, n], one dtype.
struct SoftmaxFwdArgs {
  View y, x;
  int64_t rows, n;
};
struct SoftmaxBwdArgs {
  View dx, gy, y;
  int64_t rows, n;
};
extern KernelSlot<SoftmaxFwdArgs> softmax_fwd, log_softmax_fwd;
extern KernelSlot<SoftmaxBwdArgs> softmax_bwd, log_softmax_bwd;

/// Softmax over the last dimension: y_i = e^{x_i − max} / Σ_j e^{x_j − max}.
/// Shapes  x, y [..., C]
/// Grad    dx = y·(gy − Σ gy·y)
/// Saves   y    Order  row rule (docs/numerics.md, rule 3)
/// Source  none
/// Errors  dtype: x is not floating;  shape: no dimension
Variable softmax(const Variable& x);

/// Logarithm of the softmax: y_i = (x_i − max) − log Σ_j e^{x_j − max}.
/// Shapes  x, y [..., C]
/// Grad    dx = gy − e^y·Σ gy
/// Saves   y    Order  row rule
/// Source  none
/// Errors  as softmax
Variable log_softmax(const Variable& x);

}  // namespace lowbit
