#include "autograd/ops/dropout.h"

#include "tensor/engine/pointwise.cuh"

namespace lowbit {
namespace {

struct DropoutElement {
  RngKey key;
  float p, scale;
  __device__ float operator()(int64_t i, float x) const {
    return DropoutMath::apply(x, philox_u32(key, uint64_t(i)), p, scale);
  }
};

void dropout_cuda(const DropoutArgs& a, Stream stream) {
  cuda::pointwise_indexed({a.y, a.x}, DropoutElement{a.key, float(a.p), float(1 / (1 - a.p))}, stream);
}

const CudaKernel<DropoutArgs> kernel(dropout_apply, dropout_cuda);

}  // namespace
}  // namespace lowbit
