#include "quant/ops/statsq.h"
#include "tensor/engine/pointwise.cuh"

namespace lowbit {
namespace {

void forward_cuda(const StatsqArgs& a, Stream stream) {
  const float n = float(a.n);
  if (a.y.dtype == DType::i8)
    cuda::pointwise_typed<1, false, int8_t, float, float>({a.y, a.w, a.step}, StatsqLevel<float>{n}, stream);
  else
    cuda::pointwise_typed<1, false, float, float, float>({a.y, a.w, a.step}, StatsqValue<float>{n}, stream);
}

const CudaKernel<StatsqArgs> forward(statsq_fwd, forward_cuda);

}  // namespace
}  // namespace lowbit
