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

template <class F>
auto sum(int64_t n, F f) {
  using P = PackOf<F, int64_t>;
  using S = Pack<typename P::T, P::K>;
  if (n <= kChunk) return P::unwrap(detail::sum_chunk(0, n, f));
  const int64_t chunks = ceil_div(n, kChunk);
  S* const part = detail::scratch<S>(chunks);
  parallel_wide(chunks, kGrain / kChunk, [&](int64_t b, int64_t e) {
    for (int64_t c = b; c < e; ++c) part[c] = detail::sum_chunk(c * kChunk, std::min(n, (c + 1) * kChunk), f);
  });
  return P::unwrap(detail::sum_array(part, chunks));
}

}  // namespace lowbit::cpu
