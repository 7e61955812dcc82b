#include "autograd/ops/pointwise.h"

#include "tensor/engine/pointwise.cuh"

namespace lowbit {
namespace {

template <class F>
void forward_cuda(const UnaryFwdArgs<F>& a, Stream stream) {
  if (a.x.dtype == DType::bf16)
    cuda::pointwise_typed<1, false, float, bf16>({a.y, a.x}, UnaryFwd<F>{a.f}, stream);
  else
    cuda::pointwise({a.y, a.x}, UnaryFwd<F>{a.f}, stream);
}
template <class F>
void backward_cuda(const UnaryBwdArgs<F>& a, Stream stream) {
  if constexpr (F::saves == Saves::nothing)
    cuda::pointwise({a.dx, a.gy}, UnaryBwd<F>{a.f}, stream);
  else if (a.saved.dtype == DType::bf16)
    cuda::pointwise_typed<1, false, float, float, bf16>({a.dx, a.gy, a.saved}, UnaryBwd<F>{a.f}, stream);
  else
    cuda::pointwise({a.dx, a.gy, a.saved}, UnaryBwd<F>{a.f}, stream);
}

#define LOWBIT_REGISTER_UNARY(F, name)                                           \
  const CudaKernel<UnaryFwdArgs<F>> name##_forward(name##_fwd, forward_cuda<F>); \
  const CudaKernel<UnaryBwdArgs<F>> name##_backward(name##_bwd, backward_cuda<F>);
LOWBIT_UNARY_LIST(LOWBIT_REGISTER_UNARY)
LOWBIT_UNARY_PARAMETER_LIST(LOWBIT_REGISTER_UNARY)

}  // namespace
}  // namespace lowbit
