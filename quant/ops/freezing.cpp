#include "quant/ops/freezing.h"

#include "tensor/engine/pointwise.h"
#include "tensor/engine/row.h"

namespace lowbit {
namespace {

void pin_cpu(const FreezePinArgs& a, Stream) {
  const auto of = [&]<class C>(C) {
    cpu::pointwise_typed<2, false, float, uint8_t, float, uint8_t, C, float>(
        {a.w, a.held, a.w, a.frozen, a.frozen_code, a.scale}, FreezePin{a.shift, a.lo, a.hi});
  };
  a.frozen_code.dtype == DType::i8 ? of(int8_t{}) : of(uint8_t{});
}
void gradient_cpu(const FreezeGradientArgs& a, Stream) {
  cpu::rows(a.rows, a.inner, FreezeGradientRow{a});
  cpu::rows(a.groups, a.rows / a.groups, FreezeGradientGroup{a});
  cpu::rows(a.scales, a.groups, FreezeGradientScale{a});
}

}  // namespace

constinit KernelSlot<FreezePinArgs> freeze_pin{"freeze.pin", pin_cpu};
constinit KernelSlot<FreezeGradientArgs> freeze_gradient{"freeze.gradient", gradient_cpu};

}  // namespace lowbit
