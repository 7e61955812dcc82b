#pragma once
// Host+device maths is written once: LOWBIT_HD functions compile under g++ and under the CUDA compiler.

#if defined(__CUDACC__)
#define LOWBIT_HD __host__ __device__ __forceinline__
#else
#define LOWBIT_HD inline __attribute__((always_inline))
#endif
