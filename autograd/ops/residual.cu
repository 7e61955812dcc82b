#include "autograd/ops/residual.h"

#include "autograd/ops/launch.cuh"
#include "tensor/engine/pointwise.cuh"

namespace lowbit {
namespace {

struct Sum {
  __device__ float operator()(float x, float branch) const { return ResidualMath::sum(x, branch); }
};
struct DroppedSum {
  RngKey key;
  float keep_probability;
  int64_t n;
  __device__ float operator()(int64_t i, float x, float branch) const {
    return ResidualMath::sum(x, branch, DropPathMath::keep(key, i / n, keep_probability), keep_probability);
  }
};

template <class Y, class X, class B>
void typed(const ResidualArgs& a, Stream stream) {
  if (a.drops)
    cuda::pointwise_typed<1, true, Y, X, B>({a.y, a.x, a.branch},
                                            DroppedSum{a.key, float(a.keep_probability), a.n}, stream);
  else
    cuda::pointwise_typed<1, false, Y, X, B>({a.y, a.x, a.branch}, Sum{}, stream);
}

void forward_cuda(const ResidualArgs& a, Stream stream) {
  if (a.y.dtype == DType::f32)
    typed<float, float, float>(a, stream);
  else if (a.y.dtype != DType::bf16)
    cuda::require_f32("residual.fwd", a.y);
  else if (a.x.dtype == DType::f32)
    typed<bf16, float, float>(a, stream);
  else if (a.branch.dtype == DType::f32)
    typed<bf16, bf16, float>(a, stream);
  else
    typed<bf16, bf16, bf16>(a, stream);
}

const CudaKernel<ResidualArgs> forward(residual_fwd, forward_cuda);

}  // namespace
}  // namespace lowbit
