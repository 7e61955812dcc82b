#include "autograd/ops/cross_entropy.h"

#include "autograd/ops/launch.cuh"
#include "tensor/core/index_fault.cuh"
#include "tensor/engine/row.cuh"

namespace lowbit {
namespace {

/// A label that is no class has no weight in the loss.
struct LabelledRow {
  ClassLossFwdRow<float> loss;
  cuda::IndexRange classes;
  template <class Row>
  __device__ void operator()(const Row& row, int64_t r) const {
    loss(row, r);
    if (loss.o.kind == TargetKind::label)
      row.once([=, this] { classes.holds(static_cast<const int64_t*>(loss.target)[r], r); });
  }
};

void forward_cuda(const ClassLossFwdArgs& a, Stream stream) {
  cuda::require_f32("class_loss.fwd", a.logits);
  const cuda::IndexRange classes{cuda::index_fault(stream.device), "cross_entropy", "label", "row", a.o.n};
  cuda::rows(a.o.rows, a.o.n, LabelledRow{ClassLossFwdRow<float>(a), classes}, stream);
}
void backward_cuda(const ClassLossBwdArgs& a, Stream stream) {
  cuda::require_f32("class_loss.bwd", a.logits);
  cuda::rows(a.o.rows, a.o.n, ClassLossBwdRow<float>(a), stream);
}

const CudaKernel<ClassLossFwdArgs> forward(class_loss_fwd, forward_cuda);
const CudaKernel<ClassLossBwdArgs> backward(class_loss_bwd, backward_cuda);

}  // namespace
}  // namespace lowbit
