#include "quant/ops/freezing.h"
#include "tensor/engine/pointwise.cuh"
#include "tensor/engine/row.cuh"

namespace lowbit {
namespace {

void pin_cuda(const FreezePinArgs& a, Stream stream) {
  const auto of = [&]<class C>(C) {
    cuda::pointwise_typed<2, false, float, uint8_t, float, uint8_t, C, float>(
        {a.w, a.held, a.w, a.frozen, a.frozen_code, a.scale}, FreezePin{a.shift, a.lo, a.hi}, stream);
  };
  a.frozen_code.dtype == DType::i8 ? of(int8_t{}) : of(uint8_t{});
}
void gradient_cuda(const FreezeGradientArgs& a, Stream stream) {
  cuda::rows(a.rows, a.inner, FreezeGradientRow{a}, stream);
  cuda::rows(a.groups, a.rows / a.groups, FreezeGradientGroup{a}, stream);
  cuda::rows(a.scales, a.groups, FreezeGradientScale{a}, stream);
}

const CudaKernel<FreezePinArgs> pin(freeze_pin, pin_cuda);
const CudaKernel<FreezeGradientArgs> gradient(freeze_gradient, gradient_cuda);

}  // namespace
}  // namespace lowbit
