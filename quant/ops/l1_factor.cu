#include "quant/ops/l1_factor.h"

#include "tensor/engine/reduce.cuh"

namespace lowbit {
namespace {

constexpr int kThreads = 32;

__global__ void finish_kernel(L1FactorArgs a) {
  for (int64_t g = threadIdx.x; g < a.groups; g += kThreads) l1_finish(a, g);
}

void l1_factor_cuda(const L1FactorArgs& a, Stream stream) {
  if (a.kind == L1Factor::lsq) {
    float* const sums = static_cast<float*>(static_cast<void*>(a.work));
    cuda::sum(a.n, AbsElement<float>{a.w}, sums, sums + 1, stream);
  } else {
    cuda::sum(a.n, AbsElement<double>{a.w}, a.work, a.work + 1, stream);
  }
  cuda::launch("l1_factor", finish_kernel, 1, kThreads, stream, a);
}

const CudaKernel<L1FactorArgs> registered(l1_factor, l1_factor_cuda);

}  // namespace
}  // namespace lowbit
