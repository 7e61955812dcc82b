#pragma once
// Sums over the rows of an [M, N] grid, one result per column and sum, in the order of rule 4
// (docs/numerics.md): blocks of 128 rows, rows of a block in increasing order, then the blocks in increasing
// order.
//
//   cpu::columns(M, N, [=](int64_t m, int64_t n) { return gy[m * N + n]; }, dbias);
//   cpu::columns(M, N, [=](int64_t m, int64_t n) { … return Pack<float, 2>{{g * xhat, g}}; }, dgamma, dbeta);
//
// f is called exactly once per (m, n) and may store. Outputs hold N elements of the type that f returns.

#include "tensor/core/tensor.h"
#include "tensor/engine/reduce.h"

namespace lowbit {

/// What cuda::columns needs for K sums; undefined on the CPU.
inline Tensor column_workspace(int64_t M, int64_t N, int K, DType t, Device d) {
  return d.is_cuda() ? Tensor::empty({ceil_div(M, kRowBlock) * N * K}, t, d) : Tensor{};
}

namespace cpu {

namespace detail {

/// Sums of one block of rows for the columns [n0, n1), at most kColumnTile of them, into out[k·N + n].
inline constexpr int64_t kColumnTile = 128;
template <class F, class T>
void column_block(int64_t m0, int64_t m1, int64_t n0, int64_t n1, F& f, T* out, int64_t N) {
  using P = PackOf<F, int64_t, int64_t>;
  alignas(64) T acc[P::K][kColumnTile] = {};
  const int64_t width = n1 - n0;
  for (int64_t m = m0; m < m1; ++m) {
    [&]<int... k>(std::integer_sequence<int, k...>) __attribute__((always_inline)) {
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) {
        const auto v = P::wrap(f(m, n0 + j));
        ((acc[k][j] += v.v[k]), ...);
      }
    }
    (std::make_integer_sequence<int, P::K>{});
  }
  for (int k = 0; k < P::K; ++k) std::copy_n(acc[k], width, out + k * N + n0);
}

}  // namespace detail

template <class F, class... Out>
void columns(int64_t M, int64_t N, F f, Out*... outputs) {
  using P = PackOf<F, int64_t, int64_t>;
  using S = typename P::T;
  static_assert(sizeof...(Out) == P::K && (std::is_same_v<Out, S> && ...),
                "one output per sum, of the type f returns");
  S* const out[] = {outputs...};
  const int64_t blocks = ceil_div(M, kRowBlock), tiles = ceil_div(N, detail::kColumnTile);
  S* const part = detail::scratch<S>(blocks * P::K * N);  // [blocks, K, N]
  const int64_t cell = std::min(M, kRowBlock) * std::min(N, detail::kColumnTile);
  parallel_wide(
      blocks * tiles, std::max<int64_t>(1, kGrain / std::max<int64_t>(cell, 1)), [&](int64_t b, int64_t e) {
        for (int64_t t = b; t < e; ++t) {
          const int64_t block = t / tiles, n0 = t % tiles * detail::kColumnTile;
          detail::column_block(block * kRowBlock, std::min(M, (block + 1) * kRowBlock), n0,
                               std::min(N, n0 + detail::kColumnTile), f, part + block * P::K * N, N);
        }
      });
  for (int k = 0; k < P::K; ++k) {
    std::fill_n(out[k], N, S(0));
    for (int64_t block = 0; block < blocks; ++block) {
      const S* const p = part + (block * P::K + k) * N;
      for (int64_t n = 0; n < N; ++n) out[k][n] += p[n];
    }
  }
}

}  // namespace cpu
}  // namespace lowbit
