#pragma once
// CUDA side of tensor/engine/column.h: the same order of summation, hence the same bits. A thread owns a
// column of one block of 128 rows; the last block of a column adds the blocks in increasing order.
//
//   Tensor work = Tensor::empty({cuda::columns_workspace(M, N, K)}, f32, device);
//   cuda::columns(M, N, functor, work.data<float>(), stream, dgamma, dbeta);   // functor(m, n) returns T or
//   Pack<T, K>

#include "tensor/engine/last_block.cuh"
#include "tensor/engine/row.cuh"

namespace lowbit::cuda {

inline int64_t columns_workspace(int64_t M, int64_t N, int K) { return ceil_div(M, kRowBlock) * N * K; }

namespace detail {
inline constexpr int kColumnThreads = 64;

/// One block of rows of as many columns as the block has threads: block (across, down) of `blocks` down.
/// `counter` belongs to these columns.
template <class F, class T, int K>
__device__ void column_block(int64_t M, int64_t N, const F& f, T* part, const Pack<T*, K>& out,
                             unsigned* counter, int64_t across, int64_t down, int64_t blocks) {
  using P = PackOf<F, int64_t, int64_t>;
  const int64_t n = across * int64_t(blockDim.x) + threadIdx.x;
  const int64_t end = (down + 1) * kRowBlock < M ? (down + 1) * kRowBlock : M;
  T acc[K] = {};
  for (int64_t m = down * kRowBlock; n < N && m < end; ++m) {
    const auto v = P::wrap(f(m, n));
#pragma unroll
    for (int k = 0; k < K; ++k) acc[k] += v.v[k];
  }
  const auto place = [=](int64_t b, int k) { return part + (b * K + k) * N + n; };
  if (blocks > 1) {
#pragma unroll
    for (int k = 0; k < K; ++k)
      if (n < N) *place(down, k) = acc[k];
    if (!is_last_block(counter, unsigned(blocks))) return;
  }
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (n >= N) continue;
    T s = 0;
    if (blocks == 1) s += acc[k];
    for (int64_t b = 0; b < blocks && blocks > 1; ++b) s += seen(place(b, k));
    out.v[k][n] = s;
  }
}

template <class F, class T, int K>
__global__ void column_kernel(int64_t M, int64_t N, F f, T* part, Pack<T*, K> out, unsigned* counters) {
  column_block(M, N, f, part, out, counters + blockIdx.x, blockIdx.x, blockIdx.y, gridDim.y);
}
}  // namespace detail

template <class F, class T, class... Out>
void columns(int64_t M, int64_t N, const F& f, T* workspace, Stream stream, Out*... outputs) {
  using P = PackOf<F, int64_t, int64_t>;
  static_assert(sizeof...(Out) == P::K && std::is_same_v<T, typename P::T> && (std::is_same_v<Out, T> && ...),
                "one output per sum, of the type f returns");
  if (N == 0) return;
  const int64_t blocks = std::max<int64_t>(1, ceil_div(M, kRowBlock));
  const int64_t columns = ceil_div(N, detail::kColumnThreads);
  LOWBIT_CHECK(blocks <= 65535, shape, "column", "at most 8388480 rows run on cuda (got ", M, ")");
  LOWBIT_CHECK(blocks == 1 || columns <= kBlockCounters, shape, "column",
               "at most 1048576 columns run on cuda (got ", N, ")");
  launch("column", detail::column_kernel<F, T, P::K>, dim3(unsigned(columns), unsigned(blocks)),
         detail::kColumnThreads, stream, M, N, f, workspace, Pack<T*, P::K>{{outputs...}},
         block_counters(stream));
}

}  // namespace lowbit::cuda
