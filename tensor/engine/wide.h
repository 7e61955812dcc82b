#pragma once
// Loops over ranges, in 512-bit vectors where the machine has them. The functor is compiled for both; what it
// calls must be inlined into it to gain. Results do not depend on the choice: contraction of products and
// sums is off, and the engines fix every order of summation.

#include "tensor/core/thread_pool.h"
#include "tensor/engine/isa.h"

namespace lowbit::cpu {

namespace detail {
#if defined(__x86_64__) && defined(__GNUC__)
template <class F>
__attribute__((flatten, noinline, target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"))) void
run_wide(const F& f, int64_t begin, int64_t end) {
  f(begin, end);
}
#else
template <class F>
void run_wide(const F& f, int64_t begin, int64_t end) {
  f(begin, end);
}
#endif
}  // namespace detail

/// parallel_for(n, grain, f) for arithmetic that the compiler vectorises.
template <class F>
void parallel_wide(int64_t n, int64_t grain, const F& f) {
  const bool wide = current_isa() >= Isa::avx512;
  parallel_for(n, grain, [&](int64_t begin, int64_t end) {
    if (wide)
      detail::run_wide(f, begin, end);
    else
      f(begin, end);
  });
}

}  // namespace lowbit::cpu
