#include "quant/ops/binary.h"
#include "tensor/engine/pointwise.cuh"

namespace lowbit {
namespace {

void forward_cuda(const BinarizeFwdArgs& a, Stream stream) {
  if (a.y.dtype == DType::i8)
    cuda::pointwise_typed<1, false, int8_t, float>({a.y, a.x}, binary::Sign{}, stream);
  else
    cuda::pointwise({a.y, a.x, a.s}, binary::Forward{}, stream);
}
void far_sign_cuda(const FarSignArgs& a, Stream stream) {
  cuda::pointwise({a.y, a.x}, binary::FarSign{}, stream);
}
void backward_cuda(const BinarizeBwdArgs& a, Stream stream) {
  cuda::pointwise({a.dx, a.gy, a.x}, binary::Backward{}, stream);
}

const CudaKernel<BinarizeFwdArgs> forward(binary_fwd, forward_cuda);
const CudaKernel<FarSignArgs> far_registered(far_sign, far_sign_cuda);
const CudaKernel<BinarizeBwdArgs> backward(binary_bwd, backward_cuda);

}  // namespace
}  // namespace lowbit
