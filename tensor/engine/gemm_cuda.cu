// Float products on CUDA: tiles of floats in shared memory, codes dequantized on the way there, and the
// summation order of gemm.h written out, so that the bits are those of the CPU kernels.

#include "tensor/engine/gemm.cuh"
#include "tensor/engine/gemm_library.h"
#include "tensor/engine/gemm_operand.h"
#include "tensor/hd/math.h"

namespace lowbit {
namespace {

using cuda::kProductThreads;
using cuda::kProductTile;

constexpr int kDepth = 16;  // consecutive k in shared memory
constexpr int kSide = 16;   // threads along each side of a tile
constexpr int kOwn = kProductTile / kSide;
static_assert(kSide * kSide == kProductThreads);

/// Lines [first, first + kProductTile) of an operand in one batch.
struct Lines {
  const GemmOperand* op;
  int64_t data, scale, offset, count;  ///< element numbers of the first line

  __device__ Lines(const GemmOperand& o, const BatchIndex& i, int64_t first, int64_t lines)
      : op(&o),
        data(i.offset(o.stride.batch) + first * o.stride.row),
        scale(i.offset(o.scale_stride.batch) + first * o.scale_stride.row),
        offset(i.offset(o.offset_stride.batch) + first * o.offset_stride.row),
        count(lines - first) {}

  __device__ float at(int64_t line, int64_t k) const {
    return detail::operand_value(*op, {data + line * op->stride.row + k * op->stride.k,
                                       scale + line * op->scale_stride.row + k * op->scale_stride.k,
                                       offset + line * op->offset_stride.row + k * op->offset_stride.k});
  }
  /// Elements [begin, end) of all lines; neighbouring threads read neighbouring elements.
  __device__ void stage(int64_t begin, int64_t end, float (&to)[kDepth][kProductTile + 1]) const {
    const bool along_k = op->stride.k == 1;
    for (int t = int(threadIdx.x); t < kDepth * kProductTile; t += kProductThreads) {
      const int line = along_k ? t / kDepth : t % kProductTile, k = along_k ? t % kDepth : t / kProductTile;
      to[k][line] = line < count && begin + k < end ? at(line, begin + k) : 0.f;
    }
  }
};

/// C: type of the result and of the bias. `block`: length of the K blocks of the summation order.
template <class C>
__global__ void __launch_bounds__(kProductThreads)
    gemm_kernel_cuda(const __grid_constant__ GemmArgs g, int64_t block) {
  __shared__ float as[kDepth][kProductTile + 1], bs[kDepth][kProductTile + 1];
  const cuda::ProductTile at(g);
  const Lines a(g.a, at.batch, at.m, g.m), b(g.b, at.batch, at.n, g.n);
  const int tx = int(threadIdx.x) % kSide, ty = int(threadIdx.x) / kSide;
  const float alpha = float(g.alpha);
  C* const c = static_cast<C*>(g.c) + at.batch.offset(g.c_batch);
  const auto each = [&](auto f) {
#pragma unroll
    for (int r = 0; r < kOwn; ++r)
#pragma unroll
      for (int j = 0; j < kOwn; ++j) {
        const int64_t m = at.m + ty + r * kSide, n = at.n + tx + j * kSide;
        f(r, j, m, n, m < g.m && n < g.n);
      }
  };
  float value[kOwn][kOwn] = {};
  bool started = g.beta != 0;
  if (started)
    each([&](int r, int j, int64_t m, int64_t n, bool inside) {
      if (inside) value[r][j] = float(g.beta) * float(c[m * g.c_row + n * g.c_col]);
    });
  for (int64_t begin = 0; begin < g.k || !started; begin += block) {
    float sum[kOwn][kOwn] = {};
    const int64_t end = begin + block < g.k ? begin + block : g.k;
    for (int64_t k0 = begin; k0 < end; k0 += kDepth) {
      a.stage(k0, end, as);
      b.stage(k0, end, bs);
      __syncthreads();
      const int depth = end - k0 < kDepth ? int(end - k0) : kDepth;  // a padded fma could turn −0 into 0
#pragma unroll 4
      for (int k = 0; k < depth; ++k)
        each([&](int r, int j, int64_t, int64_t, bool) {
          sum[r][j] = math::fma(as[k][ty + r * kSide], bs[k][tx + j * kSide], sum[r][j]);
        });
      __syncthreads();
    }
    each([&](int r, int j, int64_t, int64_t, bool) {
      value[r][j] = started ? math::fma(alpha, sum[r][j], value[r][j]) : alpha * sum[r][j];
    });
    started = true;
  }
  each([&](int r, int j, int64_t m, int64_t n, bool inside) {
    if (inside)
      c[m * g.c_row + n * g.c_col] =
          C(g.bias ? value[r][j] + float(static_cast<const C*>(g.bias)[n]) : value[r][j]);
  });
}

void gemm_cuda(const GemmArgs& g, Stream stream) {
  const bool rounded = g.c_dtype == DType::bf16;
  LOWBIT_CHECK(rounded || g.c_dtype == DType::f32, dtype, "gemm", "dtype must be f32 or bf16 on cuda (got ",
               dtype_name(g.c_dtype), ")");
  if (g.library && detail::gemm_library(g, stream)) return;
  const unsigned blocks = cuda::product_blocks("gemm", g);
  if (blocks == 0) return;
  cuda::launch("gemm", rounded ? gemm_kernel_cuda<bf16> : gemm_kernel_cuda<float>, blocks, kProductThreads,
               stream, g, gemm_k_block(g.k));
}

const CudaKernel<GemmArgs> registered(gemm_kernel, gemm_cuda);

}  // namespace
}  // namespace lowbit
