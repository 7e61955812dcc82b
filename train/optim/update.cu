#include "train/optim/update.h"

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

constexpr int kBlendThreads = 256;
__global__ void blend_kernel(BlendArgs a) {
  const int64_t row = blockIdx.y, n = a.rows[3 * row + 2], step = int64_t(gridDim.x) * kBlendThreads;
  for (int64_t i = blockIdx.x * int64_t(kBlendThreads) + threadIdx.x; i < n; i += step)
    blend_element(a, row, i);
}
void blend_cuda(const BlendArgs& a, Stream stream) {
  if (a.count == 0) return;
  LOWBIT_CHECK(a.count <= 65535, shape, "ema", "at most 65535 tensors are averaged on cuda (got ", a.count,
               ")");
  const unsigned blocks = unsigned(std::min<int64_t>(ceil_div(a.most, kBlendThreads), 1024));
  cuda::launch("ema", blend_kernel, dim3(blocks, unsigned(a.count)), kBlendThreads, stream, a);
}

constexpr int kNormThreads = cuda::detail::kBlockWarps * kLanes;

/// One warp per row: the sums of chunks.
__global__ void norm_chunks(GradientNormArgs a) {
  const int64_t c = blockIdx.x * int64_t(cuda::detail::kBlockWarps) + cuda::BlockRow::warp();
  if (c >= a.r.count) return;
  const float* const g = a.g;
  const float s = cuda::detail::sum_chunk(a.r.rows[3 * c + 1], a.r.rows[3 * c + 2], cuda::WarpRow::lane(),
                                          [g](int64_t i) { return g[i] * g[i]; })[0];
  if (cuda::WarpRow::lane() == 0) a.work[c] = s;
}
/// One warp per slice: its list of chunk sums by the same rule. Lists of more than one chunk have at most 32
/// parts, one for each lane: 5e8 elements.
__global__ void norm_slices(GradientNormArgs a) {
  const int64_t s = blockIdx.x * int64_t(cuda::detail::kBlockWarps) + cuda::BlockRow::warp();
  if (s >= a.r.slices) return;
  const int64_t n = a.r.first[s + 1] - a.r.first[s];
  const float* const list = a.work + a.r.first[s];
  const int lane = cuda::WarpRow::lane();
  float mine[1] = {0};
  for (int64_t part = 0; part * kChunk < n; ++part) {
    const int64_t end = (part + 1) * kChunk < n ? (part + 1) * kChunk : n;
    const float sum =
        cuda::detail::sum_chunk(part * kChunk, end, lane, [list](int64_t i) { return list[i]; })[0];
    if (lane == part || n <= kChunk) mine[0] = sum;
  }
  if (n > kChunk) cuda::detail::warp_sum(mine);
  if (lane == 0 && n > 0) a.work[a.r.count + s] = mine[0];
}
__global__ void norm_finish(GradientNormArgs a) { finish_norm(a); }

void gradient_norm_cuda(const GradientNormArgs& a, Stream stream) {
  const auto blocks = [](int64_t warps) { return unsigned(ceil_div(warps, cuda::detail::kBlockWarps)); };
  if (a.r.count > 0) {
    cuda::launch("clip.norm", norm_chunks, blocks(a.r.count), kNormThreads, stream, a);
    cuda::launch("clip.norm", norm_slices, blocks(a.r.slices), kNormThreads, stream, a);
  }
  cuda::launch("clip.norm", norm_finish, 1, 1, stream, a);
}

__global__ void norm_clip_kernel(NormClipArgs a) {
  if (!(a.norm[1] < 1)) return;
  const float factor = float(a.norm[1]);
  const int64_t* const row = a.r.rows + 3 * int64_t(blockIdx.x);
  for (int64_t i = row[1] + threadIdx.x; i < row[2]; i += kNormThreads) a.g[i] = a.g[i] * factor;
}
void norm_clip_cuda(const NormClipArgs& a, Stream stream) {
  if (a.r.count > 0)
    cuda::launch("clip.scale", norm_clip_kernel, unsigned(a.r.count), kNormThreads, stream, a);
}

void adaptive_clip_cuda(const AdaptiveClip& a, Stream stream) { cuda::rows(a.units, a.n, a, stream); }

const CudaKernel<UpdateArgs<AdamUpdate>> adam(adam_update, update_cuda<AdamUpdate>);
const CudaKernel<UpdateArgs<SgdUpdate>> sgd(sgd_update, update_cuda<SgdUpdate>);
const CudaKernel<BlendArgs> blend_registered(blend, blend_cuda);
const CudaKernel<GradientNormArgs> norm_registered(gradient_norm_kernel, gradient_norm_cuda);
const CudaKernel<NormClipArgs> clip_registered(norm_clip, norm_clip_cuda);
const CudaKernel<AdaptiveClip> adaptive_clip_registered(adaptive_clip, adaptive_clip_cuda);

}  // namespace
}  // namespace lowbit
