#pragma once
// CPU side of the row operations; see tensor/hd/row.h for how to write one.
//
//   cpu::rows(count, n, functor);    // functor(cpu::Row{}, r) for every row, parallel over rows of n
//   elements

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "tensor/engine/wide.h"
#include "tensor/hd/row.h"

namespace lowbit::cpu {

namespace detail {

/// The tree over f(begin) … f(end−1), at most kChunk elements: 32 lanes, vectorised.
template <class F>
LOWBIT_HD auto sum_chunk(int64_t begin, int64_t end, const F& f) {
  using P = PackOf<F, int64_t>;
  using T = typename P::T;
  constexpr int K = P::K;
  alignas(64) T lane[K][kLanes] = {};
  const auto add = [&]<int... k>(std::integer_sequence<int, k...>, int j, int64_t i)
      __attribute__((always_inline)) {
    const auto v = P::wrap(f(i));
    ((lane[k][j] += v.v[k]), ...);
  };
  constexpr std::make_integer_sequence<int, K> ks;
  for (int64_t i = begin; i < end; i += kLanes) {
    const int width = int(std::min<int64_t>(kLanes, end - i));  // not a constant: no unrolling of f's body
#pragma omp simd
    for (int j = 0; j < width; ++j) add(ks, j, i + j);
  }
  Pack<T, K> total;
  for (int k = 0; k < K; ++k) {
    for (int w = kLanes / 2; w > 0; w /= 2)
      for (int j = 0; j < w; ++j) lane[k][j] += lane[k][j + w];
    total.v[k] = lane[k][0];
  }
  return total;
}

/// Grow-only scratch of the calling thread, one per element type. Not for nested use.
template <class T>
T* scratch(int64_t n) {
  static thread_local std::vector<T> buffer;
  if (int64_t(buffer.size()) < n) buffer.resize(size_t(n));
  return buffer.data();
}

/// The rule on a list in memory.
template <class P>
P sum_array(const P* p, int64_t n) {
  const auto at = [p](int64_t i) { return p[i]; };
  if (n <= kChunk) return sum_chunk(0, n, at);
  std::vector<P> parts(size_t(ceil_div(n, kChunk)));
  for (int64_t c = 0; c < int64_t(parts.size()); ++c)
    parts[size_t(c)] = sum_chunk(c * kChunk, std::min(n, (c + 1) * kChunk), at);
  return sum_array(parts.data(), int64_t(parts.size()));
}

/// The rule on a list longer than a chunk; out of line because rows longer than a chunk are rare.
template <class F>
__attribute__((noinline)) auto sum_long(int64_t n, const F& f) {
  using P = PackOf<F, int64_t>;
  const int64_t chunks = ceil_div(n, kChunk);
  auto* const part = scratch<Pack<typename P::T, P::K>>(chunks);
  for (int64_t c = 0; c < chunks; ++c) part[c] = sum_chunk(c * kChunk, std::min(n, (c + 1) * kChunk), f);
  return sum_array(part, chunks);
}

}  // namespace detail

/// Row context of the CPU: one row per call.
struct Row {
  template <class F>
  LOWBIT_HD void for_each(int64_t n, F f) const {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) f(i);
  }
  template <class F>
  LOWBIT_HD auto sum(int64_t n, F f) const {
    return PackOf<F, int64_t>::unwrap(n <= kChunk ? detail::sum_chunk(0, n, f) : detail::sum_long(n, f));
  }
  template <class F>
  LOWBIT_HD auto max(int64_t n, F f) const {
    using T = std::decay_t<decltype(f(int64_t(0)))>;
    alignas(64) T lane[kLanes];
    for (int j = 0; j < kLanes; ++j) lane[j] = -std::numeric_limits<T>::infinity();
    for (int64_t i = 0; i < n; i += kLanes) {
      const int width = int(std::min<int64_t>(kLanes, n - i));
#pragma omp simd
      for (int j = 0; j < width; ++j) {
        const T v = f(i + j);
        lane[j] = lane[j] < v ? v : lane[j];
      }
    }
    for (int w = kLanes / 2; w > 0; w /= 2)
      for (int j = 0; j < w; ++j) lane[j] = lane[j] < lane[j + w] ? lane[j + w] : lane[j];
    return lane[0];
  }
  template <class F>
  LOWBIT_HD void once(F f) const {
    f();
  }
};

/// Elements below which work is not split over threads: about 10 µs of arithmetic.
inline constexpr int64_t kGrain = 1 << 14;

/// f(Row{}, r) for r in [0, count); n is the length of a row and only decides how many rows a thread gets at
/// least.
template <class F>
void rows(int64_t count, int64_t n, const F& f) {
  parallel_wide(count, std::max<int64_t>(1, kGrain / std::max<int64_t>(n, 1)), [&](int64_t b, int64_t e) {
    for (int64_t r = b; r < e; ++r) f(Row{}, r);
  });
}

}  // namespace lowbit::cpu
