#include "autograd/ops/cross_entropy.h"

#include "autograd/ops/launch.cuh"
#include "tensor/engine/row.cuh"

namespace lowbit {
namespace {

void forward_cuda(const ClassLossFwdArgs& a, Stream stream) {
  cuda::require_f32("class_loss.fwd", a.logits);
  cuda::rows(a.o.rows, a.o.n, ClassLossFwdRow<float>(a), stream);
}
void backward_cuda(const ClassLossBwdArgs& a, Stream stream) {
  cuda::require_f32("class_loss.bwd", a.logits);
  cuda::rows(a.o.rows, a.o.n, ClassLossBwdRow<float>(a), stream);
}

const CudaKernel<ClassLossFwdArgs> forward(class_loss_fwd, forward_cuda);
const CudaKernel<ClassLossBwdArgs> backward(class_loss_bwd, backward_cuda);

}  // namespace
}  // namespace lowbit
