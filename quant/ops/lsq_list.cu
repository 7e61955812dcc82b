#include "quant/ops/lsq_list.h"

#include "tensor/engine/row.cuh"

namespace lowbit {
namespace {

constexpr int kWarps = cuda::detail::kBlockWarps, kThreads = kWarps * kLanes;

/// One warp per chunk: Σ|w|.
__global__ void sums_kernel(LsqListArgs a) {
  const int64_t k = blockIdx.x * int64_t(kWarps) + cuda::BlockRow::warp();
  if (k >= a.chunk_count) return;
  const LsqListChunk c = a.chunks[k];
  const auto s = cuda::detail::sum_chunk(0, c.n, cuda::WarpRow::lane(), AbsElement<float>{c.w});
  if (cuda::WarpRow::lane() == 0) a.sums[k] = s[0];
}

/// One warp per quantizer: the list of its chunk sums by the row rule, which has at most kChunk entries.
__global__ void results_kernel(LsqListArgs a) {
  const int64_t k = blockIdx.x * int64_t(kWarps) + cuda::BlockRow::warp();
  if (k >= a.item_count) return;
  const LsqListItem item = a.items[k];
  const float* const list = a.sums + item.first;
  const int64_t n = item.factor == 0 ? item.last - item.first : 0;
  const auto l1 = cuda::detail::sum_chunk(0, n, cuda::WarpRow::lane(), [list](int64_t i) { return list[i]; });
  if (cuda::WarpRow::lane() == 0) a.results[k] = lsq_list_result(item, l1[0]);
  for (int64_t i = cuda::WarpRow::lane(); i < item.widths; i += kLanes) lsq_list_clamp(item, i);
}

/// One block per chunk.
__global__ void codes_kernel(LsqListArgs a) {
  const LsqListChunk c = a.chunks[blockIdx.x];
  const LsqListItem item = a.items[c.item];
  const LsqListResult r = a.results[c.item];
  for (int64_t i = threadIdx.x; i < c.n; i += kThreads) lsq_list_code(item, r, c, i);
}

void list_cuda(const LsqListArgs& a, Stream stream) {
  const auto blocks = [](int64_t warps) { return unsigned(ceil_div(warps, kWarps)); };
  if (a.l1 && a.chunk_count > 0)
    cuda::launch("lsq_list", sums_kernel, blocks(a.chunk_count), kThreads, stream, a);
  if (a.item_count > 0) cuda::launch("lsq_list", results_kernel, blocks(a.item_count), kThreads, stream, a);
  if (a.chunk_count > 0) cuda::launch("lsq_list", codes_kernel, unsigned(a.chunk_count), kThreads, stream, a);
}

/// One warp per chunk: the gradients of its elements and its part of the scale's.
template <MaskRule M>
__global__ void bwd_kernel(const __grid_constant__ LsqListBwdArgs a) {
  const int64_t k = blockIdx.x * int64_t(kWarps) + cuda::BlockRow::warp();
  if (k >= a.chunk_count) return;
  const LsqListChunk& c = a.chunks[a.chunk_first + k];
  if (!a.grads[c.item - a.first].gy) return;
  const LsqListElement<M> element(a, a.chunk_first + k);
  const auto s = cuda::detail::sum_chunk(0, c.n, cuda::WarpRow::lane(), element);
  if (cuda::WarpRow::lane() == 0) a.sums[a.chunk_first + k] = s;
}
/// One warp per item: the list of its chunk sums.
__global__ void bwd_finish_kernel(const __grid_constant__ LsqListBwdArgs a) {
  const int64_t k = blockIdx.x * int64_t(kWarps) + cuda::BlockRow::warp();
  if (k >= a.count || !a.grads[k].gy) return;
  const LsqListItem& item = a.items[a.first + k];
  const Pack<float, 1>* const list = a.sums + item.first;
  const auto s = cuda::detail::sum_chunk(0, item.last - item.first, cuda::WarpRow::lane(),
                                         [list](int64_t i) { return list[i]; });
  for (int64_t i = cuda::WarpRow::lane(); i < item.widths; i += kLanes)
    lsq_list_finish(a, a.first + k, s[0], i);
}

template <MaskRule M>
void list_bwd_ruled(const LsqListBwdArgs& a, Stream stream) {
  const auto blocks = [](int64_t warps) { return unsigned(ceil_div(warps, kWarps)); };
  cuda::launch("lsq_list.bwd", bwd_kernel<M>, blocks(a.chunk_count), kThreads, stream, a);
  cuda::launch("lsq_list.bwd", bwd_finish_kernel, blocks(a.count), kThreads, stream, a);
}

void list_bwd_cuda(const LsqListBwdArgs& a, Stream stream) {
  if (a.chunk_count == 0) return;
  dispatch_mask(a.mask, [&](auto rule) { list_bwd_ruled<decltype(rule)::value>(a, stream); });
}

const CudaKernel<LsqListBwdArgs> bwd_registered(lsq_list_bwd, list_bwd_cuda);
const CudaKernel<LsqListArgs> registered(lsq_list, list_cuda);

}  // namespace
}  // namespace lowbit
