#include "autograd/ops/launch.cuh"
#include "quant/ops/bin_regularizer.h"
#include "tensor/engine/reduce.cuh"

namespace lowbit {
namespace {

/// One block per chunk, one thread per bin: every thread walks over the chunk and adds the members of its
/// bin in increasing order, as the CPU does.
__global__ void chunk_kernel(BinCall b, int64_t n, BinSums* sums) {
  const int64_t first = blockIdx.x * kChunk, last = first + kChunk < n ? first + kChunk : n;
  const float a = bin_scale<float>(b);
  for (int k = int(threadIdx.x); k < b.bins(); k += int(blockDim.x)) {
    BinSums own{0, 0, 0};
    for (int64_t i = first; i < last; ++i) {
      const BinElement<float> e = bin_element(b, a, i);
      if (int(e.q) - b.lo == k) bin_add(own, e.d);
    }
    sums[blockIdx.x * b.bins() + k] = own;
  }
}

__global__ void finish_kernel(BinCall b, const BinSums* sums, int64_t chunks, int64_t n, BinMean* means,
                              float* y) {
  bin_finish<float>(b, sums, chunks, n, means, y);
}

void forward_cuda(const BinFwdArgs& a, Stream stream) {
  cuda::require_f32("bin_regularizer.fwd", a.b.w);
  const int64_t n = a.b.w.numel(), chunks = ceil_div(n, kChunk);
  BinSums* const sums = a.sums.as<BinSums>();
  cuda::launch("bin_regularizer.fwd", chunk_kernel, unsigned(chunks), kLanes, stream, a.b, n, sums);
  cuda::launch("bin_regularizer.fwd", finish_kernel, 1, 1, stream, a.b, sums, chunks, n,
               a.means.as<BinMean>(), a.y.as<float>());
}

struct Backward {
  BinCall b;
  const BinMean* means;
  const float* gy;
  float* dw;
  double n;
  LOWBIT_HD double operator()(int64_t i) const {
    return bin_backward(b, means, *gy, dw, n, bin_scale<float>(b), i);
  }
};

__global__ void scale_kernel(BinCall b, const double* da, float* dscale) {
  dscale[b.slot] = float(bin_factor(b) * *da);
}

void backward_cuda(const BinBwdArgs& a, Stream stream) {
  cuda::require_f32("bin_regularizer.bwd", a.b.w);
  const int64_t n = a.b.w.numel();
  double* const da = a.da.as<double>();
  cuda::sum(n,
            Backward{a.b, a.means.as<const BinMean>(), a.gy.as<const float>(), a.dw.as<float>(), double(n)},
            da, da + 1, stream);
  if (a.dscale.data)
    cuda::launch("bin_regularizer.bwd", scale_kernel, 1, 1, stream, a.b, da, a.dscale.as<float>());
}

const CudaKernel<BinFwdArgs> forward(bin_regularizer_fwd, forward_cuda);
const CudaKernel<BinBwdArgs> backward(bin_regularizer_bwd, backward_cuda);

}  // namespace
}  // namespace lowbit
