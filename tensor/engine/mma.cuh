#pragma once
// Products of a warp in registers: the tensor cores' instructions, and the same on architectures (and in the
// emulator) that lack them.

#include <cstdint>

#include "tensor/core/cuda_runtime.cuh"

namespace lowbit::cuda {

/// Σ of four products of unsigned bytes of a and signed bytes of b, added to c.
__device__ inline int32_t dot4(uint32_t a, uint32_t b, int32_t c) {
#if defined(__CUDACC__)
  int32_t d;
  asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
#else
  for (int i = 0; i < 32; i += 8) c += int32_t(uint8_t(a >> i)) * int32_t(int8_t(b >> i));
  return c;
#endif
}

/// c += A·B over 32 k for a warp, A [16, 32] unsigned, B [32, 8] signed, words of four consecutive k. Lane l
/// with g = l/4 and t = l%4 holds
///   a: words (row g, word t), (row g + 8, word t), (row g, word t + 4), (row g + 8, word t + 4)
///   b: words (column g, word t), (column g, word t + 4)
///   c: (row g, columns 2t and 2t + 1), (row g + 8, the same columns)
/// Source  PTX ISA, mma.m16n8k32 with integer types
__device__ inline void mma_16x8x32(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  const int lane = int(threadIdx.x % 32), row = lane / 4 * 4,
            col = lane % 4 * 2 * 4;  // lanes that hold t = 0
#pragma unroll
  for (int t = 0; t < 4; ++t)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t upper = __shfl_sync(0xffffffffu, a[2 * half], row + t),
                     lower = __shfl_sync(0xffffffffu, a[2 * half + 1], row + t),
                     left = __shfl_sync(0xffffffffu, b[half], col + t),
                     right = __shfl_sync(0xffffffffu, b[half], col + 4 + t);
      c[0] = dot4(upper, left, c[0]), c[1] = dot4(upper, right, c[1]);
      c[2] = dot4(lower, left, c[2]), c[3] = dot4(lower, right, c[3]);
    }
#endif
}

}  // namespace lowbit::cuda
