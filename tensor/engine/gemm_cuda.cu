// Float products on CUDA: one thread per element, the summation order of gemm.h written out, so that the bits
// are those of the CPU kernels. It is the plain version that cuBLASLt kernels will be compared with; integer
// products have no CUDA kernel yet.

#include "tensor/core/cuda_runtime.cuh"
#include "tensor/engine/gemm.h"
#include "tensor/hd/math.h"

namespace lowbit {
namespace {

constexpr int kTile = 16;

/// First element of an operand for one position of the batch, in elements.
__device__ int64_t batch_offset(const GemmOperand::Strides& s, const int64_t (&index)[kMaxBatchDims]) {
  int64_t offset = 0;
  for (int d = 0; d < kMaxBatchDims; ++d) offset += index[d] * s.batch[d];
  return offset;
}

struct Line {
  const GemmOperand* op;
  int64_t data, scale, offset;  ///< element numbers of the line's start

  __device__ Line(const GemmOperand& o, const int64_t (&index)[kMaxBatchDims], int64_t row)
      : op(&o),
        data(batch_offset(o.stride, index) + row * o.stride.row),
        scale(batch_offset(o.scale_stride, index) + row * o.scale_stride.row),
        offset(batch_offset(o.offset_stride, index) + row * o.offset_stride.row) {}

  __device__ float at(int64_t k) const {
    const int64_t i = data + k * op->stride.k;
    if (op->dtype == DType::f32) return static_cast<const float*>(op->data)[i];
    const float code = op->dtype == DType::u8 ? float(static_cast<const uint8_t*>(op->data)[i])
                                              : float(static_cast<const int8_t*>(op->data)[i]);
    const float v = op->scale[scale + k * op->scale_stride.k] * (code + float(op->shift));
    return op->offset ? v + op->offset[offset + k * op->offset_stride.k] : v;
  }
};

__global__ void gemm_kernel_cuda(GemmArgs a, int64_t block) {
  const int64_t n = int64_t(blockIdx.x) * kTile + threadIdx.x, m = int64_t(blockIdx.y) * kTile + threadIdx.y;
  if (m >= a.m || n >= a.n) return;
  int64_t index[kMaxBatchDims], rest = blockIdx.z;
  for (int d = kMaxBatchDims - 1; d >= 0; --d) {
    index[d] = rest % a.batch[d];
    rest /= a.batch[d];
  }
  int64_t at = m * a.c_row + n * a.c_col;
  for (int d = 0; d < kMaxBatchDims; ++d) at += index[d] * a.c_batch[d];
  float* const c = static_cast<float*>(a.c) + at;
  const Line x(a.a, index, m), y(a.b, index, n);
  const float alpha = float(a.alpha);
  bool started = a.beta != 0;
  float value = started ? float(a.beta) * *c : 0.f;
  for (int64_t begin = 0; begin < a.k || !started; begin += block) {
    float sum = 0;
    const int64_t end = begin + block < a.k ? begin + block : a.k;
    for (int64_t k = begin; k < end; ++k) sum = math::fma(x.at(k), y.at(k), sum);
    value = started ? math::fma(alpha, sum, value) : alpha * sum;
    started = true;
  }
  *c = a.bias ? value + static_cast<const float*>(a.bias)[n] : value;
}

void gemm_cuda(const GemmArgs& a, Stream stream) {
  LOWBIT_CHECK(a.c_dtype == DType::f32, dtype, "gemm", "dtype must be f32 on cuda (got ",
               dtype_name(a.c_dtype), ")");
  const int64_t batch = a.batch[0] * a.batch[1] * a.batch[2];
  if (a.m == 0 || a.n == 0 || batch == 0) return;
  LOWBIT_CHECK(batch <= 65535 && a.m <= 65535 * int64_t(kTile), shape, "gemm",
               "too large for the cuda kernel (got m=", a.m, ", batch=", batch, ")");
  const dim3 grid(unsigned((a.n + kTile - 1) / kTile), unsigned((a.m + kTile - 1) / kTile), unsigned(batch));
  gemm_kernel_cuda<<<grid, dim3(kTile, kTile), 0, cuda::handle(stream)>>>(a, gemm_k_block(a.k));
  cuda::check_launch("gemm");
}

const CudaKernel<GemmArgs> registered(gemm_kernel, gemm_cuda);

}  // namespace
}  // namespace lowbit
