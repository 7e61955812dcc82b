#pragma once
// Sums over a whole list in the order of rule 3 (docs/numerics.md), parallel, the same bits for any thread
// count.
//
//   float total = cpu::sum(n, [=](int64_t i) { return x[i]; });
//   Pack<float, 2> t = cpu::sum(n, [=](int64_t i) {                    // K sums and a store in one pass
//     dx[i] = …; return Pack<float, 2>{{a, b}}; });
//
// f is called exactly once per i. f32 terms accumulate in f32, f64 terms in f64.

#include "tensor/engine/row.h"

namespace lowbit::cpu {

/// The same where a chunk is prepared before its sum: chunk(begin, end) returns sum_chunk(begin, end, f), a
/// Pack.
template <class Chunk>
auto sum_chunks(int64_t n, Chunk chunk) {
  using S = decltype(chunk(int64_t{}, int64_t{}));
  const int64_t chunks = std::max<int64_t>(1, ceil_div(n, kChunk));
  S* const part = detail::scratch<S>(chunks);
  parallel_wide(chunks, kGrain / kChunk, [&](int64_t b, int64_t e) {
    for (int64_t c = b; c < e; ++c) part[c] = chunk(c * kChunk, std::min(n, (c + 1) * kChunk));
  });
  return chunks == 1 ? part[0] : detail::sum_array(part, chunks);
}

template <class F>
auto sum(int64_t n, F f) {
  using P = PackOf<F, int64_t>;
  return P::unwrap(
      sum_chunks(n, [f](int64_t begin, int64_t end) { return detail::sum_chunk(begin, end, f); }));
}

}  // namespace lowbit::cpu
