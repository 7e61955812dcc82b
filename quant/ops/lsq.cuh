#pragma once
// What CUDA kernels share that end in the gradients of a quantizer's parameters.

#include "quant/ops/lsq.h"
#include "tensor/core/cuda_runtime.cuh"

namespace lowbit::cuda {

/// By one block: zeros, then the groups, side by side where no two share a parameter.
__device__ inline void lsq_finish_block(const LsqFinishArgs& a) {
  if (!a.out.wanted()) return;
  for (int64_t i = threadIdx.x; i < lsq_output_count(a.out); i += blockDim.x) lsq_clear<float>(a.out, i);
  __syncthreads();
  if (a.out.own) {
    for (int64_t g = threadIdx.x; g < a.c.groups; g += blockDim.x) lsq_finish_group<float>(a, g);
  } else if (threadIdx.x == 0) {
    for (int64_t g = 0; g < a.c.groups; ++g) lsq_finish_group<float>(a, g);
  }
}

}  // namespace lowbit::cuda
