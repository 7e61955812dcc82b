#include "autograd/ops/drop_path.h"

#include "tensor/engine/pointwise.cuh"

namespace lowbit {
namespace {

struct DropPathElement {
  RngKey key;
  float keep_probability;
  int64_t n;
  __device__ float operator()(int64_t i, float x) const {
    return DropPathMath::apply(x, DropPathMath::keep(key, i / n, keep_probability), keep_probability);
  }
};

void drop_path_cuda(const DropPathArgs& a, Stream stream) {
  cuda::pointwise_indexed({a.y, a.x}, DropPathElement{a.key, float(a.keep_probability), a.n}, stream);
}

const CudaKernel<DropPathArgs> kernel(drop_path_apply, drop_path_cuda);

}  // namespace
}  // namespace lowbit
