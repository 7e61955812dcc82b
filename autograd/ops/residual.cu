#include "autograd/ops/residual.h"

#include "tensor/engine/pointwise.cuh"

namespace lowbit {
namespace {

struct Sum {
  template <class T>
  __device__ T operator()(T x, T branch) const {
    return ResidualMath::sum(x, branch);
  }
};
struct DroppedSum {
  RngKey key;
  float keep_probability;
  int64_t n;
  __device__ float operator()(int64_t i, float x, float branch) const {
    return ResidualMath::sum(x, branch, DropPathMath::keep(key, i / n, keep_probability), keep_probability);
  }
};

void forward_cuda(const ResidualArgs& a, Stream stream) {
  if (a.drops)
    cuda::pointwise_indexed({a.y, a.x, a.branch}, DroppedSum{a.key, float(a.keep_probability), a.n}, stream);
  else
    cuda::pointwise({a.y, a.x, a.branch}, Sum{}, stream);
}

const CudaKernel<ResidualArgs> forward(residual_fwd, forward_cuda);

}  // namespace
}  // namespace lowbit
