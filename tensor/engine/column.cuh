#pragma once
// CUDA side of tensor/engine/column.h: the same order of summation, hence the same bits. A thread owns a
// column of one block of 128 rows; a second kernel adds the blocks in increasing order.
//
//   Tensor work = Tensor::empty({cuda::columns_workspace(M, N, K)}, f32, device);
//   cuda::columns(M, N, functor, work.data<float>(), stream, dgamma, dbeta);   // functor(m, n) returns T or
//   Pack<T, K>

#include "tensor/engine/row.cuh"

namespace lowbit::cuda {

inline int64_t columns_workspace(int64_t M, int64_t N, int K) { return ceil_div(M, kRowBlock) * N * K; }

namespace detail {
inline constexpr int kColumnThreads = 64;

template <class F, class T>
__global__ void column_blocks(int64_t M, int64_t N, F f, T* part) {
  using P = PackOf<F, int64_t, int64_t>;
  const int64_t n = blockIdx.x * int64_t(kColumnThreads) + threadIdx.x, block = blockIdx.y;
  if (n >= N) return;
  const int64_t end = (block + 1) * kRowBlock < M ? (block + 1) * kRowBlock : M;
  T acc[P::K] = {};
  for (int64_t m = block * kRowBlock; m < end; ++m) {
    const auto v = P::wrap(f(m, n));
#pragma unroll
    for (int k = 0; k < P::K; ++k) acc[k] += v.v[k];
  }
#pragma unroll
  for (int k = 0; k < P::K; ++k) part[(block * P::K + k) * N + n] = acc[k];
}
template <class T, int K>
__global__ void column_combine(int64_t blocks, int64_t N, const T* part, Pack<T*, K> out) {
  const int64_t n = blockIdx.x * int64_t(kColumnThreads) + threadIdx.x;
  if (n >= N) return;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    T s = 0;
    for (int64_t b = 0; b < blocks; ++b) s += part[(b * K + k) * N + n];
    out.v[k][n] = s;
  }
}
}  // namespace detail

template <class F, class T, class... Out>
void columns(int64_t M, int64_t N, const F& f, T* workspace, Stream stream, Out*... outputs) {
  using P = PackOf<F, int64_t, int64_t>;
  static_assert(sizeof...(Out) == P::K && std::is_same_v<T, typename P::T> && (std::is_same_v<Out, T> && ...),
                "one output per sum, of the type f returns");
  if (N == 0) return;
  const int64_t blocks = ceil_div(M, kRowBlock);
  const unsigned columns = unsigned(ceil_div(N, detail::kColumnThreads));
  LOWBIT_CHECK(blocks <= 65535, shape, "column", "at most 8388480 rows run on cuda (got ", M, ")");
  if (blocks > 0)
    launch("column", detail::column_blocks<F, T>, dim3(columns, unsigned(blocks)), detail::kColumnThreads,
           stream, M, N, f, workspace);
  launch("column", detail::column_combine<T, P::K>, columns, detail::kColumnThreads, stream, blocks, N,
         workspace, Pack<T*, P::K>{{outputs...}});
}

}  // namespace lowbit::cuda
