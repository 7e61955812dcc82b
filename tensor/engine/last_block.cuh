#pragma once
// Two passes in one kernel: every block writes its part, and whichever finishes last goes on with all parts,
// in their own order. Which one that is differs from run to run, the bits do not.

#include "tensor/core/cuda_runtime.cuh"

namespace lowbit::cuda {

/// Counters of blocks for the kernels of a stream, all 0: a kernel leaves them as it found them.
inline constexpr int64_t kBlockCounters = 1 << 14;
unsigned* block_counters(Stream s);

/// For all threads of each of the `blocks` blocks that share a counter: whether theirs is the last one, which
/// sees what the others wrote before, through seen().
__device__ inline bool is_last_block(unsigned* counter, unsigned blocks) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(counter, 1U) + 1 == blocks;
    if (last) *counter = 0;
  }
  __syncthreads();
  return last;
}

/// A number that another block wrote: not from a cache of this multiprocessor.
template <class T>
__device__ T seen(const T* p) {
  return *static_cast<const volatile T*>(p);
}

}  // namespace lowbit::cuda
