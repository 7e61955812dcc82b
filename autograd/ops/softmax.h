#pragma once
#include "tensor/core/kernel_slot.h"
#include "tensor/core/tensor.h"
#include "tensor/hd/half.h"
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
/// The same, rounded to bf16. Nothing holds e^x between the passes, so it is formed twice.
struct NarrowedSoftmaxFwdRow {
  bf16* y;
  const float* x;
  int64_t n, pitch;  ///< elements from row to row of y
  template <class Row>
  LOWBIT_HD void operator()(const Row& row, int64_t r) const {
    const float* const x_r = x + r * n;
    bf16* const y_r = y + r * pitch;
    const float top = row.max(n, [=](int64_t i) { return x_r[i]; });
    const float total = row.sum(n, [=](int64_t i) { return math::exp(x_r[i] - top); });
    row.for_each(n, [=](int64_t i) { y_r[i] = bf16(math::exp(x_r[i] - top) / total); });
  }
};
/// Y: type of y.
template <class T, class Y = T>
struct SoftmaxBwdRow {
  T* dx;
  const T* gy;
  const Y* y;
  int64_t n;
  int64_t pitch = n;  ///< elements from row to row of y
  template <class Row>
  LOWBIT_HD void operator()(const Row& row, int64_t r) const {
    const T* const g = gy + r * n;
    const Y* const y_r = y + r * pitch;
    T* const d = dx + r * n;
    const T dot = row.sum(n, [=](int64_t i) { return g[i] * T(y_r[i]); });
    row.for_each(n, [=](int64_t i) { d[i] = T(y_r[i]) * (g[i] - dot); });
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

/// All packed [rows, n], one dtype; of a narrowed softmax y is bf16 and has rows of any pitch.
struct SoftmaxFwdArgs {
  View y, x;
  int64_t rows, n;
};
struct SoftmaxBwdArgs {
  View dx, gy, y;
  int64_t rows, n;
};
extern KernelSlot<SoftmaxFwdArgs> softmax_fwd, narrowed_softmax_fwd, log_softmax_fwd;
extern KernelSlot<SoftmaxBwdArgs> softmax_bwd, narrowed_softmax_bwd, log_softmax_bwd;

/// Softmax over the last dimension: y_i = e^{x_i − max} / Σ_j e^{x_j − max}.
/// Shapes  x, y [..., C]
/// Grad    dx = y·(gy − Σ gy·y)
/// Saves   y    Order  row rule (docs/numerics.md, rule 3)
/// Source  none
/// Errors  dtype: x is not floating;  shape: no dimension
Variable softmax(const Variable& x);

/// The same where the result is an operand of products (attention): where Context::gemm is bf16, y is rounded
/// to bf16, once, and stored so, which is what a product would make of it. Rows begin at multiples of 16
/// bytes.
/// Shapes  x, y [..., C]
/// Grad    that of softmax from the rounded y: its sums Σ gy·y are those of the product that y entered
/// Saves   y    Order  row rule
/// Source  none
/// Errors  as softmax
Variable narrowed_softmax(const Variable& x);

/// Logarithm of the softmax: y_i = (x_i − max) − log Σ_j e^{x_j − max}.
/// Shapes  x, y [..., C]
/// Grad    dx = gy − e^y·Σ gy
/// Saves   y    Order  row rule
/// Source  none
/// Errors  as softmax
Variable log_softmax(const Variable& x);

}  // namespace lowbit
