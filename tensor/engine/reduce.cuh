#pragma once
// CUDA side of tensor/engine/reduce.h: the same order of summation, hence the same bits. One warp per chunk,
// then one warp per chunk of the list of results, until one result is left.
//
//   Tensor work = Tensor::empty({cuda::sum_workspace(n) * K}, f32, device);        // by the op, before the
//   kernel runs cuda::sum(n, functor, out, work.data<float>(), stream);    // out: K values; functor(i)
//   returns T or Pack<T, K>

#include "tensor/engine/row.cuh"

namespace lowbit::cuda {

/// Workspace of a sum over n elements, in units of one functor result.
inline int64_t sum_workspace(int64_t n) {
  int64_t total = 0;
  for (int64_t c = ceil_div(n, kChunk); c > 1; c = ceil_div(c, kChunk)) total += c;
  return total;
}

namespace detail {
template <class F, class S>
__global__ void sum_kernel(int64_t n, F f, S* out) {
  const int64_t c = blockIdx.x * int64_t(kBlockWarps) + BlockRow::warp();
  if (c > 0 && c * kChunk >= n) return;
  const S s = sum_chunk(c * kChunk, (c + 1) * kChunk < n ? (c + 1) * kChunk : n, WarpRow::lane(), f);
  if (WarpRow::lane() == 0) out[c] = s;
}
template <class S>
struct ListElement {
  const S* list;
  __device__ S operator()(int64_t i) const { return list[i]; }
};
}  // namespace detail

template <class F, class T>
void sum(int64_t n, const F& f, T* out, T* workspace, Stream stream) {
  using P = PackOf<F, int64_t>;
  static_assert(std::is_same_v<T, typename P::T>, "out and workspace hold the type that f returns");
  using S = Pack<T, P::K>;
  S* next = reinterpret_cast<S*>(workspace);
  constexpr int threads = detail::kBlockWarps * kLanes;
  int64_t chunks = std::max<int64_t>(1, ceil_div(n, kChunk));
  S* list = chunks == 1 ? reinterpret_cast<S*>(out) : next;
  launch("sum", detail::sum_kernel<F, S>, unsigned(ceil_div(chunks, detail::kBlockWarps)), threads, stream, n,
         f, list);
  while (chunks > 1) {
    next += chunks;
    const int64_t parts = ceil_div(chunks, kChunk);
    S* const target = parts == 1 ? reinterpret_cast<S*>(out) : next;
    using List = detail::ListElement<S>;
    launch("sum", detail::sum_kernel<List, S>, unsigned(ceil_div(parts, detail::kBlockWarps)), threads,
           stream, chunks, List{list}, target);
    list = target;
    chunks = parts;
  }
}

}  // namespace lowbit::cuda
