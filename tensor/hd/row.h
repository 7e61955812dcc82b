#pragma once
// Row operations are written once against a *row context* and run with SIMD lanes on the CPU
// (tensor/engine/row.h) and with one warp or one block per row on CUDA (tensor/engine/row.cuh):
//
//   struct SoftmaxRow {                                     // y = softmax(x) of each row of n
//     const float* x; float* y; int64_t n;
//     template <class Row> LOWBIT_HD void operator()(const Row& row, int64_t r) const {
//       const float* xr = x + r * n; float* yr = y + r * n;
//       const float top = row.max(n, [=](int64_t i) { return xr[i]; });
//       const float sum = row.sum(n, [=](int64_t i) {
//         const float e = math::exp(xr[i] - top);
//         yr[i] = e;                                        // store and return a local: re-reading yr[i]
//         return e;                                         // would keep g++ from vectorising
//       });
//       row.for_each(n, [=](int64_t i) { yr[i] /= sum; });
//     }
//   };
//   cpu::rows(rows, n, SoftmaxRow{x, y, n});                // in the .cpp
//   cuda::rows(rows, n, SoftmaxRow{x, y, n}, stream);       // in the .cu
//
// A context offers
//   for_each(n, f)  f(i) for every i in [0, n), in any order
//   sum(n, f)       sum of f(i); f returns T, or Pack<T, K> for K sums at once
//   max(n, f)       largest f(i), −∞ for n = 0; NaN is ignored (it shows up in whatever is computed next)
//   once(f)         f() a single time per row: for storing the row's scalars
// f is called exactly once per i and may store; what one call stores at index i, later passes may read at
// index i only. Inside LOWBIT_HD functions use plain lambdas, by value.
//
// Order of summation (docs/numerics.md, rule 3): lane j of 32 adds the elements j, j+32, … in increasing
// order to 0; then for w = 16, 8, 4, 2, 1 lane i < w adds lane i+w. Lists longer than 4096 are cut into
// chunks of 4096, each is reduced so, and the list of the results is reduced by the same rule.

#include <cstdint>
#include <type_traits>

#include "tensor/hd/macros.h"

namespace lowbit {

inline constexpr int kLanes = 32;          ///< lanes of the summation tree
inline constexpr int64_t kChunk = 4096;    ///< longest list summed by one tree
inline constexpr int64_t kRowBlock = 128;  ///< rows per block of a column sum (rule 4)

/// K values of one type, e.g. the summands of K simultaneous sums or the results of an op with K outputs.
template <class T, int K>
struct Pack {
  T v[K];
  LOWBIT_HD T& operator[](int k) { return v[k]; }
  LOWBIT_HD const T& operator[](int k) const { return v[k]; }
};

/// A functor's result seen as a Pack: a plain number counts as a Pack of one.
template <class R>
struct PackTraits {
  using T = R;
  static constexpr int K = 1;
  LOWBIT_HD static Pack<T, 1> wrap(R r) { return {{r}}; }
  LOWBIT_HD static R unwrap(const Pack<T, 1>& p) { return p.v[0]; }
};
template <class U, int N>
struct PackTraits<Pack<U, N>> {
  using T = U;
  static constexpr int K = N;
  LOWBIT_HD static Pack<U, N> wrap(const Pack<U, N>& r) { return r; }
  LOWBIT_HD static Pack<U, N> unwrap(const Pack<U, N>& p) { return p; }
};
template <class F, class... A>
using PackOf = PackTraits<std::decay_t<std::invoke_result_t<const F&, A...>>>;

LOWBIT_HD constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace lowbit
