#pragma once
#include "tensor/core/kernel_slot.h"
#include "tensor/core/tensor.h"
#include "tensor/hd/macros.h"

namespace lowbit {

/// y[r] = the index of the largest of x[r, ·], the first of equal ones; 0 for rows of NaN.   Not
/// differentiable
/// Shapes  x [B, C] f32, 0 < C ≤ 2^24;  y [B] i64
/// Errors  shape, dtype
Tensor argmax_rows(const Tensor& x);

struct ArgmaxArgs {
  const float* x;
  int64_t* y;
  int64_t rows, n;
};
extern KernelSlot<ArgmaxArgs> argmax_kernel;

/// Indices are compared as negative floats, which are exact.
struct ArgmaxRow {
  const float* x;
  int64_t* y;
  int64_t n;
  template <class Row>
  LOWBIT_HD void operator()(const Row& row, int64_t r) const {
    const float* const from = x + r * n;
    const float most = row.max(n, [=](int64_t i) { return from[i]; }), none = -float(n);
    const float first = row.max(n, [=](int64_t i) { return from[i] == most ? -float(i) : none; });
    int64_t* const to = y + r;
    row.once([=] { *to = first == none ? 0 : int64_t(-first); });
  }
};

}  // namespace lowbit
