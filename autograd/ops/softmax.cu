#include "autograd/ops/softmax.h"

#include "autograd/ops/launch.cuh"
#include "tensor/engine/row.cuh"

namespace lowbit {
namespace {

template <template <class> class Row>
void forward_cuda(const SoftmaxFwdArgs& a, Stream stream) {
  cuda::require_f32("softmax.fwd", a.x);
  cuda::rows(a.rows, a.n, Row<float>{a.y.as<float>(), a.x.as<float>(), a.n}, stream);
}
template <template <class> class Row>
void backward_cuda(const SoftmaxBwdArgs& a, Stream stream) {
  cuda::require_f32("softmax.bwd", a.gy);
  cuda::rows(a.rows, a.n, Row<float>{a.dx.as<float>(), a.gy.as<float>(), a.y.as<float>(), a.n}, stream);
}

void narrowed_forward_cuda(const SoftmaxFwdArgs& a, Stream stream) {
  cuda::require_f32("narrowed_softmax.fwd", a.x);
  cuda::rows(a.rows, a.n,
             NarrowedSoftmaxFwdRow{a.y.as<bf16>(), a.x.as<float>(), a.n, a.y.stride[a.y.ndim - 2]}, stream);
}
void narrowed_backward_cuda(const SoftmaxBwdArgs& a, Stream stream) {
  cuda::require_f32("narrowed_softmax.bwd", a.gy);
  cuda::rows(a.rows, a.n,
             SoftmaxBwdRow<float, bf16>{a.dx.as<float>(), a.gy.as<float>(), a.y.as<bf16>(), a.n,
                                        a.y.stride[a.y.ndim - 2]},
             stream);
}

const CudaKernel<SoftmaxFwdArgs> softmax_f(softmax_fwd, forward_cuda<SoftmaxFwdRow>);
const CudaKernel<SoftmaxBwdArgs> softmax_b(softmax_bwd, backward_cuda<SoftmaxBwdRow>);
const CudaKernel<SoftmaxFwdArgs> narrowed_softmax_f(narrowed_softmax_fwd, narrowed_forward_cuda);
const CudaKernel<SoftmaxBwdArgs> narrowed_softmax_b(narrowed_softmax_bwd, narrowed_backward_cuda);
const CudaKernel<SoftmaxFwdArgs> log_softmax_f(log_softmax_fwd, forward_cuda<LogSoftmaxFwdRow>);
const CudaKernel<SoftmaxBwdArgs> log_softmax_b(log_softmax_bwd, backward_cuda<LogSoftmaxBwdRow>);

}  // namespace
}  // namespace lowbit
