#pragma once
// One pool for compute. The partition follows the clock: no kernel's result may depend on it
// (docs/numerics.md).

#include <cstdint>
#include <memory>
#include <type_traits>

namespace lowbit {

/// Flush-to-zero and denormals-are-zero for the calling thread. Set in every compute and loader thread.
void enable_flush_to_zero();

/// Number of compute threads; 0 restores the default (the affinity mask, or LOWBIT_THREADS).
void set_threads(int n);
int threads();

namespace detail {
void parallel_run(int64_t n, int64_t grain, void (*call)(void*, int64_t, int64_t), void* f);
}

/// Calls f(begin, end) over a partition of [0, n), several times in each thread, with at least `grain` items
/// but for the last; less than twice `grain` items run on the calling thread, in one call. Nested calls run
/// serially. Exceptions thrown by f reach the caller.
template <class F>
void parallel_for(int64_t n, int64_t grain, F&& f) {
  using Fn = std::remove_reference_t<F>;
  detail::parallel_run(
      n, grain, [](void* p, int64_t b, int64_t e) { (*static_cast<Fn*>(p))(b, e); },
      const_cast<void*>(static_cast<const void*>(std::addressof(f))));
}

}  // namespace lowbit
