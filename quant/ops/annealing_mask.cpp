#include "quant/ops/annealing_mask.h"

#include "tensor/engine/pointwise.h"
#include "tensor/engine/row.h"

namespace lowbit {
namespace {

void extremes_cpu(const AnnealExtremesArgs& a, Stream) {
  cpu::rows(a.rows, a.inner, AnnealExtremesRow{a});
  cpu::rows(1, a.rows, AnnealExtremesAll{a});
}
void mask_cpu(const AnnealMaskArgs& a, Stream) {
  if (a.g.data)
    cpu::pointwise<3>({a.free, a.frozen, a.g, a.w, a.scale, a.g}, AnnealMask(a));
  else
    cpu::pointwise<2>({a.free, a.frozen, a.w, a.scale}, AnnealMask(a));
}
void restore_cpu(const AnnealRestoreArgs& a, Stream) {
  cpu::pointwise({a.w, a.w, a.free, a.frozen}, AnnealRestore{});
}

}  // namespace

constinit KernelSlot<AnnealExtremesArgs> anneal_extremes{"anneal.extremes", extremes_cpu};
constinit KernelSlot<AnnealMaskArgs> anneal_mask{"anneal.mask", mask_cpu};
constinit KernelSlot<AnnealRestoreArgs> anneal_restore{"anneal.restore", restore_cpu};

}  // namespace lowbit
