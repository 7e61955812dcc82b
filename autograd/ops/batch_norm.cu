#include "autograd/ops/batch_norm.h"

#include "autograd/ops/launch.cuh"
#include "tensor/engine/column.cuh"
#include "tensor/engine/pointwise.cuh"

namespace lowbit {
namespace {

void forward_cuda(const BatchNormFwdArgs& a, Stream stream) {
  cuda::pointwise({a.y, a.x, a.mean, a.rstd, a.gamma, a.beta}, BatchNormFwd{}, stream);
}
void sums_cuda(const BatchNormSumsArgs& a, Stream stream) {
  cuda::require_f32("batch_norm.sums", a.x);
  cuda::columns(a.rows, a.n, BatchNormSums<float>(a), a.work.as<float>(), stream, a.dgamma.as<float>(),
                a.dbeta.as<float>());
}
void backward_cuda(const BatchNormBwdArgs& a, Stream stream) {
  cuda::pointwise({a.dx, a.gy, a.x, a.mean, a.rstd, a.gamma, a.dgamma, a.dbeta},
                  BatchNormBwd{a.rows, a.training}, stream);
}
__global__ void count_kernel(int64_t* count) { ++*count; }
void count_cuda(const BatchCountArgs& a, Stream stream) {
  cuda::launch("batch_norm.count", count_kernel, 1, 1, stream, a.count);
}

const CudaKernel<BatchCountArgs> count(batch_norm_count, count_cuda);
const CudaKernel<BatchNormFwdArgs> forward(batch_norm_fwd, forward_cuda);
const CudaKernel<BatchNormSumsArgs> sums(batch_norm_sums, sums_cuda);
const CudaKernel<BatchNormBwdArgs> backward(batch_norm_bwd, backward_cuda);

}  // namespace
}  // namespace lowbit
