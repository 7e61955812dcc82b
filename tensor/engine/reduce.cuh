#pragma once
// CUDA side of tensor/engine/reduce.h: the same order of summation, hence the same bits. One warp per chunk;
// the last block goes on with the list of results, one warp per chunk of it, until one result is left.
//
//   Tensor work = Tensor::empty({(2 * ceil_div(n, kChunk) + 1) * K}, f32, device);   // by the op, before
//   cuda::sum(n, functor, out, work.data<float>(), stream);   // out: K values; functor(i) returns T or
//   Pack<T, K>

#include "tensor/engine/last_block.cuh"
#include "tensor/engine/row.cuh"

namespace lowbit::cuda {

namespace detail {
/// What another block wrote.
template <class T, int K>
struct ListElement {
  const Pack<T, K>* list;
  __device__ Pack<T, K> operator()(int64_t i) const {
    Pack<T, K> s;
#pragma unroll
    for (int k = 0; k < K; ++k) s.v[k] = seen(list[i].v + k);
    return s;
  }
};

/// Sums of the chunks c of [0, n) that belong to the calling warp: c = first, first + step, …
template <class F, class S>
__device__ void sum_chunks(int64_t n, const F& f, S* out, int64_t first, int64_t step) {
  for (int64_t c = first; c == 0 || c * kChunk < n; c += step) {
    const S s = sum_chunk(c * kChunk, (c + 1) * kChunk < n ? (c + 1) * kChunk : n, WarpRow::lane(), f);
    if (WarpRow::lane() == 0) out[c] = s;
  }
}

template <class F, class T, int K, class Then>
__global__ void sum_kernel(int64_t n, F f, Pack<T, K>* list, Then then, unsigned* counter) {
  const int64_t warp = blockIdx.x * int64_t(kBlockWarps) + BlockRow::warp();
  sum_chunks(n, f, list, warp, int64_t(gridDim.x) * kBlockWarps);
  if (gridDim.x > 1 && !is_last_block(counter, gridDim.x)) return;
  for (n = ceil_div(n, kChunk); n > 1; n = ceil_div(n, kChunk)) {
    __syncthreads();
    sum_chunks(n, ListElement<T, K>{list}, list + n, BlockRow::warp(), kBlockWarps);
    list += n;
  }
  __syncthreads();
  then(ListElement<T, K>{list}(0));
}

template <class T, int K>
struct StoreSum {
  Pack<T, K>* out;
  __device__ void operator()(const Pack<T, K>& s) const {
    if (threadIdx.x == 0) *out = s;
  }
};
}  // namespace detail

/// then(sum) by all threads of one block, which may use barriers.
template <class F, class T, class Then>
void sum_then(const char* op, int64_t n, const F& f, T* workspace, const Then& then, Stream stream) {
  using P = PackOf<F, int64_t>;
  static_assert(std::is_same_v<T, typename P::T>, "the workspace holds the type that f returns");
  const int64_t chunks = std::max<int64_t>(1, ceil_div(n, kChunk));
  launch(op, detail::sum_kernel<F, T, P::K, Then>, unsigned(ceil_div(chunks, detail::kBlockWarps)),
         detail::kBlockWarps * kLanes, stream, n, f, reinterpret_cast<Pack<T, P::K>*>(workspace), then,
         block_counters(stream));
}

template <class F, class T>
void sum(int64_t n, const F& f, T* out, T* workspace, Stream stream) {
  constexpr int K = PackOf<F, int64_t>::K;
  sum_then("sum", n, f, workspace, detail::StoreSum<T, K>{reinterpret_cast<Pack<T, K>*>(out)}, stream);
}

}  // namespace lowbit::cuda
