#include "autograd/ops/launch.cuh"
#include "quant/ops/dampening.h"
#include "tensor/engine/row.cuh"

namespace lowbit {
namespace {

void forward_cuda(const DampeningFwdArgs& a, Stream stream) {
  cuda::require_f32("dampening.fwd", a.y);
  cuda::rows(a.of.rows, a.of.inner, DampeningFwdRow<float>{a}, stream);
  cuda::rows(1, a.of.rows, DampeningFwdTotal<float>{a}, stream);
}
void backward_cuda(const DampeningBwdArgs& a, Stream stream) {
  cuda::require_f32("dampening.bwd", a.dw);
  cuda::rows(a.of.rows, a.of.inner, DampeningBwdRow<float>{a}, stream);
}

const CudaKernel<DampeningFwdArgs> forward(dampening_fwd, forward_cuda);
const CudaKernel<DampeningBwdArgs> backward(dampening_bwd, backward_cuda);

}  // namespace
}  // namespace lowbit
