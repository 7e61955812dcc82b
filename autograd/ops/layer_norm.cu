#include "autograd/ops/layer_norm.h"

#include "autograd/ops/launch.cuh"
#include "tensor/engine/column.cuh"

namespace lowbit {
namespace {

void forward_cuda(const LayerNormFwdArgs& a, Stream stream) {
  cuda::require_f32("layer_norm.fwd", a.y);
  if (a.x.dtype == DType::bf16)
    cuda::rows(a.rows, a.n, LayerNormFwdRow<float, bf16>(a), stream);
  else
    cuda::rows(a.rows, a.n, LayerNormFwdRow<float>(a), stream);
}
template <class X>
void backward_typed(const LayerNormBwdArgs& a, Stream stream) {
  if (a.dx.data) cuda::rows(a.rows, a.n, LayerNormBwdRow<float, X>(a), stream);
  if (a.dgamma.data)
    cuda::columns(a.rows, a.n, LayerNormGainColumn<float, X>(a), a.work.as<float>(), stream,
                  a.dgamma.as<float>(), a.dbeta.as<float>());
}
void backward_cuda(const LayerNormBwdArgs& a, Stream stream) {
  cuda::require_f32("layer_norm.bwd", a.gy);
  if (a.x.dtype == DType::bf16)
    backward_typed<bf16>(a, stream);
  else
    backward_typed<float>(a, stream);
}

const CudaKernel<LayerNormFwdArgs> forward(layer_norm_fwd, forward_cuda);
const CudaKernel<LayerNormBwdArgs> backward(layer_norm_bwd, backward_cuda);

}  // namespace
}  // namespace lowbit
