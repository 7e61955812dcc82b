#pragma once
// CUDA side of the row operations (tensor/hd/row.h): one warp per row, one block per row longer than a chunk.
// The warp's xor-shuffle sum is the tree of the summation rule, so the bits agree with the CPU.
//
//   cuda::rows(count, n, functor, stream);    // functor(context, r) for every row of n elements

#include "tensor/core/cuda_runtime.cuh"
#include "tensor/hd/row.h"

namespace lowbit::cuda {

namespace detail {

template <class T, int K>
__device__ void warp_sum(T (&acc)[K]) {
#pragma unroll
  for (int k = 0; k < K; ++k)
#pragma unroll
    for (int w = kLanes / 2; w > 0; w /= 2) acc[k] += __shfl_xor_sync(0xffffffffu, acc[k], w);
}
template <class T>
__device__ T warp_max(T m) {
#pragma unroll
  for (int w = kLanes / 2; w > 0; w /= 2) {
    const T o = __shfl_xor_sync(0xffffffffu, m, w);
    m = m < o ? o : m;
  }
  return m;
}
/// The tree over f(begin) … f(end−1), at most kChunk elements, by one warp; every lane gets the sums.
template <class F>
__device__ auto sum_chunk(int64_t begin, int64_t end, int lane, const F& f) {
  using P = PackOf<F, int64_t>;
  typename P::T acc[P::K] = {};
  for (int64_t i = begin + lane; i < end; i += kLanes) {
    const auto v = P::wrap(f(i));
#pragma unroll
    for (int k = 0; k < P::K; ++k) acc[k] += v.v[k];
  }
  warp_sum(acc);
  Pack<typename P::T, P::K> total;
#pragma unroll
  for (int k = 0; k < P::K; ++k) total.v[k] = acc[k];
  return total;
}
template <class T>
__device__ constexpr T minus_infinity() {
  return -T(__builtin_huge_val());
}

inline constexpr int kBlockWarps = 8;
inline constexpr int kMaxRowChunks = 512;  ///< longest row: 512 chunks, 2 M elements

}  // namespace detail

/// One row per warp, rows of at most one chunk.
struct WarpRow {
  template <class F>
  __device__ void for_each(int64_t n, F f) const {
    for (int64_t i = lane(); i < n; i += kLanes) f(i);
  }
  template <class F>
  __device__ auto sum(int64_t n, F f) const {
    return PackOf<F, int64_t>::unwrap(detail::sum_chunk(0, n, lane(), f));
  }
  template <class F>
  __device__ auto max(int64_t n, F f) const {
    using T = std::decay_t<decltype(f(int64_t(0)))>;
    T m = detail::minus_infinity<T>();
    for (int64_t i = lane(); i < n; i += kLanes) {
      const T v = f(i);
      m = m < v ? v : m;
    }
    return detail::warp_max(m);
  }
  template <class F>
  __device__ void once(F f) const {
    if (lane() == 0) f();
  }
  __device__ static int lane() { return int(threadIdx.x % kLanes); }
};

/// One row per block: warp w takes the chunks w, w + 8, …; the list of their sums is reduced by the same
/// rule.
struct BlockRow {
  template <class F>
  __device__ void for_each(int64_t n, F f) const {
    for (int64_t c = warp() * kChunk; c < n; c += detail::kBlockWarps * kChunk) {
      const int64_t end = c + kChunk < n ? c + kChunk : n;
      for (int64_t i = c + WarpRow::lane(); i < end; i += kLanes) f(i);
    }
  }
  template <class F>
  __device__ auto sum(int64_t n, F f) const {
    using P = PackOf<F, int64_t>;
    using S = Pack<typename P::T, P::K>;
    __shared__ S part[detail::kMaxRowChunks];
    const int64_t chunks = (n + kChunk - 1) / kChunk;
    for (int64_t c = warp(); c < chunks; c += detail::kBlockWarps) {
      const int64_t end = (c + 1) * kChunk < n ? (c + 1) * kChunk : n;
      const S s = detail::sum_chunk(c * kChunk, end, WarpRow::lane(), f);
      if (WarpRow::lane() == 0) part[c] = s;
    }
    __syncthreads();
    const S* const list = part;
    const S total = detail::sum_chunk(0, chunks, WarpRow::lane(), [=](int64_t c) { return list[c]; });
    __syncthreads();  // every warp has read the list before the next sum overwrites it
    return P::unwrap(total);
  }
  template <class F>
  __device__ auto max(int64_t n, F f) const {
    using T = std::decay_t<decltype(f(int64_t(0)))>;
    __shared__ T part[detail::kBlockWarps];
    T m = detail::minus_infinity<T>();
    for_each(n, [&](int64_t i) {
      const T v = f(i);
      m = m < v ? v : m;
    });
    m = detail::warp_max(m);
    if (WarpRow::lane() == 0) part[warp()] = m;
    __syncthreads();
    for (int w = 0; w < detail::kBlockWarps; ++w) m = m < part[w] ? part[w] : m;
    __syncthreads();
    return m;
  }
  template <class F>
  __device__ void once(F f) const {
    if (threadIdx.x == 0) f();
  }
  __device__ static int warp() { return int(threadIdx.x / kLanes); }
};

namespace detail {
template <class F>
__global__ void warp_rows(int64_t count, F f) {
  const int64_t r = blockIdx.x * int64_t(kBlockWarps) + BlockRow::warp();
  if (r < count) f(WarpRow{}, r);
}
template <class F>
__global__ void block_rows(F f) {
  f(BlockRow{}, int64_t(blockIdx.x));
}
}  // namespace detail

/// f is a struct with `template <class Row> LOWBIT_HD void operator()(const Row&, int64_t r) const`.
template <class F>
void rows(int64_t count, int64_t n, const F& f, Stream stream) {
  if (count == 0) return;
  constexpr int threads = detail::kBlockWarps * kLanes;
  if (n <= kChunk) {
    launch("row", detail::warp_rows<F>, unsigned(ceil_div(count, detail::kBlockWarps)), threads, stream,
           count, f);
  } else {
    LOWBIT_CHECK(n <= kChunk * detail::kMaxRowChunks, shape, "row", "rows of at most ",
                 kChunk * detail::kMaxRowChunks, " elements run on cuda (got ", n, ")");
    launch("row", detail::block_rows<F>, unsigned(count), threads, stream, f);
  }
}

}  // namespace lowbit::cuda
