// Integer products on CUDA: tiles of packed words in shared memory, tensor cores, and the terms and the
// result expression of coded_terms.h, so that the bits are those of the CPU.

#include "tensor/engine/code_tile.cuh"
#include "tensor/engine/coded_terms.h"
#include "tensor/engine/gemm_pack.h"

namespace lowbit {
namespace {

using cuda::kProductThreads;
using cuda::kProductTile;
using detail::CodedPlan;
using detail::ColTerms;
using detail::IntOut;
using detail::RowTerms;

/// A product and its blocks in the launch; those of a list stand behind each other.
struct CodedTask {
  CodedGemmArgs g;
  CodedPlan p;
  unsigned tiles;
  bool a_aligned, b_aligned;  ///< cuda::word_aligned
};
struct CodedTasks {
  int count = 0;
  CodedTask task[kCodedTogether];
};
static_assert(sizeof(CodedTasks) <= 4096, "the parameters of a kernel");

__global__ void __launch_bounds__(kProductThreads)
    coded_gemm_kernel_cuda(const __grid_constant__ CodedTasks all) {
  unsigned block = blockIdx.x;
  const CodedTask& task = *cuda::task_at(all.task, all.count, &CodedTask::tiles, block);
  const CodedGemmArgs& g = task.g;
  const CodedPlan& p = task.p;
  __shared__ cuda::WordStage as[2], bs[2];
  __shared__ RowTerms rows[kProductTile];
  __shared__ ColTerms cols[kProductTile];
  __shared__ detail::OffsetSums offsets;
  const cuda::ProductTile at(g, block);
  const BatchIndex& index = at.batch;
  const cuda::CodeLines a(g.a, index, at.m, g.m, g.k, p.a.zero, task.a_aligned),
      b(g.b, index, at.n, g.n, g.k, p.b.zero, task.b_aligned);
  const int thread = int(threadIdx.x), line = thread % kProductTile;
  const bool sums_a = thread < kProductTile, sums_b = !sums_a && thread < 2 * kProductTile,
             exact = p.out == IntOut::f64;
  // the offsets of one operand weight the codes of the other
  const float *const e = exact && g.b.offset_stride.k ? detail::batch_offsets(g.b, index) : nullptr,
                     *const o = exact && g.a.offset_stride.k ? detail::batch_offsets(g.a, index) : nullptr;
  if (exact && thread == kProductThreads - 1) offsets = detail::offset_sums(g, index);

  cuda::LineSums sums;
  cuda::WarpTile tile;
  uint32_t own_a[cuda::kOwnWords], own_b[cuda::kOwnWords];
  constexpr int kDepth = 4 * cuda::kStageWords;
  if (g.k > 0) a.fetch(0, own_a), b.fetch(0, own_b);
  int side = 0;
  for (int64_t k = 0; k < g.k; k += kDepth, side ^= 1) {
    a.store(own_a, as[side]), b.store(own_b, bs[side]);
    __syncthreads();  // the other side was read before this barrier and is written after it
    if (k + kDepth < g.k) a.fetch(k + kDepth, own_a), b.fetch(k + kDepth, own_b);
    if (sums_a) sums.add<false>(as[side], line, k, g.k, p.a.shift, e, g.b.offset_stride.k);
    if (sums_b) sums.add<true>(bs[side], line, k, g.k, p.b.shift, o, g.a.offset_stride.k);
    tile.add(as[side], bs[side]);
  }
  __syncthreads();  // offsets are there
  if (sums_a && at.m + line < g.m)
    rows[line] = detail::row_terms(g, p, index, at.m + line, sums.plain, sums.weighted, offsets);
  if (sums_b && at.n + line < g.n)
    cols[line] = detail::col_terms(g, p, index, at.n + line, sums.plain, sums.weighted);
  __syncthreads();
  tile.each([&](int i, int j, int of, int e) {
    if (at.m + i >= g.m || at.n + j >= g.n) return;
    const int64_t to = index.offset(g.c_batch) + (at.m + i) * g.c_row + (at.n + j) * g.c_col;
    const RowTerms& row = rows[i];
    const ColTerms& col = cols[j];
    const int32_t acc = tile.acc[of][e],
                  sum = detail::corrected(acc, p.factor / 2, row.correction, col.correction);
    if (p.out == IntOut::s32)
      static_cast<int32_t*>(g.c)[to] = sum;
    else
      static_cast<float*>(g.c)[to] = p.out == IntOut::f32
                                         ? detail::scaled_result(sum, row.scale, col.scale, col.bias)
                                         : detail::exact_result(acc, row, col);
  });
}

/// The codes of A from their floats: one pass before the product, which then reads bytes.
__global__ void quantize_kernel(const __grid_constant__ CodedGemmArgs g, int64_t n) {
  const auto& a = g.a;
  for (int64_t t = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; t < n;
       t += int64_t(gridDim.x) * blockDim.x) {
    const int64_t k = t % g.k, line = t / g.k, row = line % g.m;
    const BatchIndex i = BatchIndex::of(g, line / g.m);
    const auto& xs = g.quantize_stride;
    const float x = g.quantize[i.offset(xs.batch) + row * xs.row + k * xs.k];
    const float scale = a.scale[i.offset(a.scale_stride.batch) + row * a.scale_stride.row];
    const float offset = a.offset ? detail::batch_offsets(a, i)[k * a.offset_stride.k] : 0.f;
    auto* const codes = static_cast<uint8_t*>(const_cast<void*>(a.data));
    codes[i.offset(a.stride.batch) + row * a.stride.row + k * a.stride.k] =
        uint8_t(detail::quantized_code(x, offset, scale, float(a.lo), float(a.hi)));
  }
}

void coded_products_cuda(const CodedProducts& from, Stream stream) {
  constexpr const char* op = "coded_gemm";
  CodedTasks all;
  int64_t blocks = 0;
  for (; all.count < from.count; ++all.count) {
    CodedGemmArgs g = from.product[all.count];
    detail::fold_batches(g, g.quantize ? &g.quantize_stride : nullptr);
    const unsigned tiles = cuda::product_blocks(op, g);
    const int64_t codes = tiles ? g.batch[0] * g.batch[1] * g.batch[2] * g.m * g.k : 0;
    if (g.quantize && codes > 0)
      cuda::launch(op, quantize_kernel, unsigned(std::min<int64_t>((codes + 255) / 256, 1 << 16)), 256,
                   stream, g, codes);
    all.task[all.count] = {g, CodedPlan(g), tiles, cuda::word_aligned(g.a), cuda::word_aligned(g.b)};
    blocks += tiles;
  }
  LOWBIT_CHECK(blocks <= 0x7fffffff, shape, op, "too large for the cuda kernel (got ", blocks, " tiles)");
  if (blocks) cuda::launch(op, coded_gemm_kernel_cuda, unsigned(blocks), kProductThreads, stream, all);
}

const CudaKernel<CodedProducts> registered(coded_products, coded_products_cuda);

}  // namespace
}  // namespace lowbit
