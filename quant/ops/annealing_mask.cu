#include "quant/ops/annealing_mask.h"

#include "tensor/engine/pointwise.cuh"
#include "tensor/engine/row.cuh"

namespace lowbit {
namespace {

void extremes_cuda(const AnnealExtremesArgs& a, Stream stream) {
  cuda::rows(a.rows, a.inner, AnnealExtremesRow{a}, stream);
  cuda::rows(1, a.rows, AnnealExtremesAll{a}, stream);
}
void mask_cuda(const AnnealMaskArgs& a, Stream stream) {
  if (a.g.data)
    cuda::pointwise<3>({a.free, a.frozen, a.g, a.w, a.scale, a.g}, AnnealMask(a), stream);
  else
    cuda::pointwise<2>({a.free, a.frozen, a.w, a.scale}, AnnealMask(a), stream);
}
void restore_cuda(const AnnealRestoreArgs& a, Stream stream) {
  cuda::pointwise({a.w, a.w, a.free, a.frozen}, AnnealRestore{}, stream);
}

const CudaKernel<AnnealExtremesArgs> extremes(anneal_extremes, extremes_cuda);
const CudaKernel<AnnealMaskArgs> mask(anneal_mask, mask_cuda);
const CudaKernel<AnnealRestoreArgs> restore(anneal_restore, restore_cuda);

}  // namespace
}  // namespace lowbit
