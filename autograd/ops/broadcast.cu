#include "autograd/ops/broadcast.h"

#include "tensor/engine/pointwise.cuh"

namespace lowbit {
namespace {

template <class F>
void forward_cuda(const BinaryFwdArgs<F>& a, Stream stream) {
  cuda::pointwise({a.y, a.a, a.b}, BinaryFwd<F>{}, stream);
}
template <class F>
void backward_cuda(const BinaryBwdArgs<F>& a, Stream stream) {
  cuda::pointwise({a.d, a.gy, a.a, a.b}, BinaryBwd<F>{a.side}, stream);
}

#define LOWBIT_REGISTER_BINARY(F, name)                                           \
  const CudaKernel<BinaryFwdArgs<F>> name##_forward(name##_fwd, forward_cuda<F>); \
  const CudaKernel<BinaryBwdArgs<F>> name##_backward(name##_bwd, backward_cuda<F>);
LOWBIT_BINARY_LIST(LOWBIT_REGISTER_BINARY)

}  // namespace
}  // namespace lowbit
