#include "tensor/engine/gemm_operand.h"

#include <algorithm>

#include "tensor/core/cuda_runtime.cuh"

namespace lowbit::detail {
namespace {

constexpr int kThreads = 256;

/// `width` threads for a line, a power of two: neighbouring threads write neighbouring elements.
__global__ void copy_operand_kernel(const __grid_constant__ OperandCopyArgs a, int width) {
  const int64_t lines = a.lines(), inner = a.inner();
  const int thread = int(threadIdx.x), per_block = kThreads / width;
  for (int64_t at = blockIdx.x * int64_t(per_block) + thread / width; at < lines;
       at += int64_t(gridDim.x) * per_block) {
    const OperandCopyArgs::Line line = a.line(at);
    for (int64_t i = thread % width; i < inner; i += width) a.element(line, i);
  }
}

void copy_operand_cuda(const OperandCopyArgs& a, Stream stream) {
  const int64_t lines = a.lines();
  if (lines * a.inner() == 0) return;
  int width = 8;
  while (width < kThreads && width < a.inner()) width *= 2;
  const int64_t per_block = kThreads / width;
  const unsigned blocks = unsigned(std::min<int64_t>((lines + per_block - 1) / per_block, 1 << 16));
  cuda::launch("gemm.operand", copy_operand_kernel, blocks, kThreads, stream, a, width);
}

const CudaKernel<OperandCopyArgs> registered(copy_operand, copy_operand_cuda);

}  // namespace
}  // namespace lowbit::detail
