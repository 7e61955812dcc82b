#include "autograd/ops/reduce.h"

#include "autograd/ops/launch.cuh"
#include "tensor/engine/column.cuh"
#include "tensor/engine/reduce.cuh"

namespace lowbit {
namespace {

struct Element {
  const float* x;
  __device__ float operator()(int64_t i) const { return x[i]; }
};
struct Cell {
  const float* x;
  int64_t inner;
  __device__ float operator()(int64_t m, int64_t n) const { return x[m * inner + n]; }
};
struct SumRow {
  float* y;
  const float* x;
  int64_t extent;
  template <class Row>
  __device__ void operator()(const Row& row, int64_t r) const {
    const float* const from = x + r * extent;
    const float total = row.sum(extent, [=](int64_t i) { return from[i]; });
    float* const to = y + r;
    row.once([=] { *to = total; });
  }
};

void reduce_cuda(const ReduceArgs& a, Stream stream) {
  cuda::require_f32("reduce", a.x);
  const float* const x = a.x.as<float>();
  float *const y = a.y.as<float>(), *const work = a.work.as<float>();
  if (a.inner == 1 && a.outer == 1)
    cuda::sum(a.extent, Element{x}, y, work, stream);
  else if (a.inner == 1)
    cuda::rows(a.outer, a.extent, SumRow{y, x, a.extent}, stream);
  else
    for (int64_t o = 0; o < a.outer; ++o)  // the workspace is free again in stream order
      cuda::columns(a.extent, a.inner, Cell{x + o * a.extent * a.inner, a.inner}, work, stream,
                    y + o * a.inner);
}

const CudaKernel<ReduceArgs> kernel(reduce_extent, reduce_cuda);

}  // namespace
}  // namespace lowbit
