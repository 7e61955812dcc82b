#include <algorithm>

#include "tensor/core/cuda_runtime.cuh"
#include "tensor/core/dequantize.h"

namespace lowbit {
namespace {

__global__ void dequantize_kernel(DequantizeArgs a) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < a.n;
       i += int64_t(gridDim.x) * blockDim.x)
    a.y[i] = a.value(i);
}

void dequantize_cuda(const DequantizeArgs& a, Stream stream) {
  if (a.n == 0) return;
  const unsigned blocks = unsigned(std::min<int64_t>((a.n + 255) / 256, 1 << 16));
  cuda::launch("dequantize", dequantize_kernel, blocks, 256, stream, a);
}

const CudaKernel<DequantizeArgs> registered(dequantize_codes, dequantize_cuda);

}  // namespace
}  // namespace lowbit
