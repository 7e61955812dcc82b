#include "tensor/engine/gemm_parts.h"

#include <algorithm>

#include "tensor/core/cuda_runtime.cuh"

namespace lowbit::detail {
namespace {

constexpr int kThreads = 256;

unsigned blocks_for(int64_t n) { return unsigned(std::min<int64_t>((n + kThreads - 1) / kThreads, 1 << 16)); }

/// `lines_first`: neighbouring threads have neighbouring lines, else neighbouring blocks of one line.
__global__ void line_blocks_kernel(const __grid_constant__ LineSumArgs a, int64_t n, bool lines_first) {
  const int64_t lines = a.all_lines(), blocks = a.blocks();
  for (int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x; i < n; i += int64_t(gridDim.x) * kThreads) {
    if (lines_first)
      a.block(i % lines, i / lines);
    else
      a.block(i / blocks, i % blocks);
  }
}
__global__ void line_totals_kernel(const __grid_constant__ LineSumArgs a, int64_t n) {
  for (int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x; i < n; i += int64_t(gridDim.x) * kThreads)
    a.total(i);
}
__global__ void parts_finish_kernel(const __grid_constant__ PartsFinishArgs a, int64_t n) {
  for (int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x; i < n; i += int64_t(gridDim.x) * kThreads)
    a.element(i);
}

void line_sums_cuda(const LineSumArgs& a, Stream stream) {
  const int64_t lines = a.all_lines(), n = lines * a.blocks();
  if (lines == 0) return;
  if (n > 0)
    cuda::launch("gemm.line_sums", line_blocks_kernel, blocks_for(n), kThreads, stream, a, n,
                 a.floats.stride.row == 1);
  cuda::launch("gemm.line_sums", line_totals_kernel, blocks_for(lines), kThreads, stream, a, lines);
}

void parts_finish_cuda(const PartsFinishArgs& a, Stream stream) {
  const int64_t n = a.elements();
  if (n > 0) cuda::launch("gemm.parts_finish", parts_finish_kernel, blocks_for(n), kThreads, stream, a, n);
}

const CudaKernel<LineSumArgs> sums_registered(line_sums, line_sums_cuda);
const CudaKernel<PartsFinishArgs> finish_registered(parts_finish, parts_finish_cuda);

}  // namespace
}  // namespace lowbit::detail
