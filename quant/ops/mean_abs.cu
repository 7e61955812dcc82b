#include "autograd/ops/launch.cuh"
#include "quant/ops/mean_abs.h"
#include "tensor/engine/column.cuh"
#include "tensor/engine/pointwise.cuh"
#include "tensor/engine/reduce.cuh"

namespace lowbit {
namespace {

struct Element {
  const float* x;
  LOWBIT_HD float operator()(int64_t i) const { return math::abs(x[i]); }
};

/// Row m of the columns (group, column).
struct ColumnElement {
  const float* x;
  int64_t rows, columns;
  LOWBIT_HD float operator()(int64_t m, int64_t n) const {
    return math::abs(x[(n / columns * rows + m) * columns + n % columns]);
  }
};

struct Mean {
  float count, factor;
  LOWBIT_HD float operator()(float sum) const { return sum / count * factor; }
};

void mean_abs_cuda(const MeanAbsArgs& a, Stream stream) {
  cuda::require_f32("mean_abs", a.x);
  const GroupLayout l = a.l;
  const int64_t runs = l.outer * l.groups;
  const float* const x = a.x.as<const float>();
  float *const mean = a.mean.as<float>(), *const run_sums = l.outer == 1 ? mean : a.work.as<float>(),
               *const work = a.work.as<float>() + runs;
  if (l.columns > 1) {
    cuda::columns(l.inner, l.scales(), ColumnElement{x, l.inner, l.columns}, work, stream, mean);
  } else if (l.inner == 1) {
    cuda::columns(l.outer, l.groups, ColumnElement{x, l.outer, l.groups}, work, stream, mean);
  } else if (runs == 1) {
    cuda::sum(l.inner, Element{x}, mean, work, stream);
  } else {
    cuda::rows(runs, l.inner, MeanAbsRun<float>{x, run_sums, l.inner}, stream);
    if (l.outer > 1)
      cuda::columns(l.outer, l.groups, ColumnElement{run_sums, l.outer, l.groups}, work, stream, mean);
  }
  cuda::pointwise({a.mean, a.mean}, Mean{float(l.members()), float(a.factor)}, stream);
}

const CudaKernel<MeanAbsArgs> registered(mean_abs_kernel, mean_abs_cuda);

}  // namespace
}  // namespace lowbit
