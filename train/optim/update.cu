#include "train/optim/update.h"

#include "tensor/engine/pointwise.cuh"
#include "tensor/engine/reduce.cuh"

namespace lowbit {
namespace {

/// One block per row of the work list.
template <class Update>
__global__ void update_kernel(UpdateArgs<Update> a) {
  const int64_t* const chunk = a.chunks + 3 * int64_t(blockIdx.x);
  const UpdateHyper h = a.hyper[chunk[0]];
  if (h.active == 0) return;
  for (int64_t i = chunk[1] + threadIdx.x; i < chunk[2]; i += blockDim.x) {
    float unused = 0;
    a.update(a.p[i], a.g[i], a.m[i], a.v ? a.v[i] : unused, h);
  }
}

template <class Update>
void update_cuda(const UpdateArgs<Update>& a, Stream stream) {
  if (a.chunk_count == 0) return;
  cuda::launch("optimizer", update_kernel<Update>, unsigned(a.chunk_count), 256, stream, a);
}

void blend_cuda(const BlendArgs& a, Stream stream) { cuda::pointwise({a.e, a.e, a.w}, a.f, stream); }

struct SquareElement {
  const float* x;
  LOWBIT_HD float operator()(int64_t i) const { return x[i] * x[i]; }
};
void square_sum_cuda(const SquareSumArgs& a, Stream stream) {
  cuda::sum(a.n, SquareElement{a.x}, a.out, a.work, stream);
}

void adaptive_clip_cuda(const AdaptiveClip& a, Stream stream) { cuda::rows(a.units, a.n, a, stream); }

const CudaKernel<UpdateArgs<AdamUpdate>> adam(adam_update, update_cuda<AdamUpdate>);
const CudaKernel<UpdateArgs<SgdUpdate>> sgd(sgd_update, update_cuda<SgdUpdate>);
const CudaKernel<BlendArgs> blend_registered(blend, blend_cuda);
const CudaKernel<SquareSumArgs> square_sum_registered(square_sum, square_sum_cuda);
const CudaKernel<AdaptiveClip> adaptive_clip_registered(adaptive_clip, adaptive_clip_cuda);

}  // namespace
}  // namespace lowbit
