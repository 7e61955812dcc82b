// Integer products on CUDA: tiles of packed words in shared memory, tensor cores, and the terms and the
// result expression of coded_terms.h, so that the bits are those of the CPU.

#include "tensor/engine/coded_terms.h"
#include "tensor/engine/gemm.cuh"
#include "tensor/engine/gemm_pack.h"
#include "tensor/engine/mma.cuh"

namespace lowbit {
namespace {

using cuda::kProductThreads;
using cuda::kProductTile;
using detail::CodedPlan;
using detail::ColTerms;
using detail::IntOut;
using detail::RowTerms;

constexpr int kWords = 16;  // of a line in shared memory: 64 consecutive k
constexpr int kStep = 8;    // words of one warp product
constexpr int kLine =
    kProductTile + 8;  // the eight lines and four words that a warp reads lie in different banks
constexpr int kOwnWords = kWords * kProductTile / kProductThreads;  // that a thread moves to shared memory
constexpr int kWarpsDown = 4, kWarpsAcross = kProductThreads / 32 / kWarpsDown;
constexpr int kProducts = kProductTile / kWarpsAcross / 8;  // of 16 x 8 results, side by side, for each warp
static_assert(kWarpsDown * 16 == kProductTile);
using Stage = uint32_t[kWords][kLine];

/// Lines [first, first + kProductTile) of an operand in one batch.
struct Lines {
  const uint8_t* data;
  int64_t row, k_step, count, k;
  uint32_t zeros;  ///< the zero code in each byte
  bool whole_words;

  __device__ Lines(const GemmOperand& o, const BatchIndex& i, int64_t first, int64_t lines, int64_t k,
                   int zero, bool aligned)
      : data(static_cast<const uint8_t*>(o.data) + i.offset(o.stride.batch) + first * o.stride.row),
        row(o.stride.row),
        k_step(o.stride.k),
        count(lines - first),
        k(k),
        zeros(uint32_t(uint8_t(zero)) * 0x01010101u),
        whole_words(aligned) {}

  /// Four consecutive packed codes of a line; zeros outside.
  __device__ uint32_t word(int line, int64_t at) const {
    if (line >= count || at >= k) return 0;
    const uint8_t* const from = data + line * row;
    if (whole_words && at + 4 <= k) return __vsub4(*reinterpret_cast<const uint32_t*>(from + at), zeros);
    uint32_t w = 0;
    for (int i = 0; i < 4; ++i)
      if (at + i < k) w |= uint32_t(uint8_t(from[(at + i) * k_step] - uint8_t(zeros))) << (8 * i);
    return w;
  }
  /// Neighbouring threads read neighbouring bytes. Registers first: the words of the next step travel while
  /// this one is multiplied.
  __device__ void fetch(int64_t at, uint32_t (&own)[kOwnWords]) const {
#pragma unroll
    for (int i = 0; i < kOwnWords; ++i) {
      const auto [line, w] = place(i);
      own[i] = word(line, at + 4 * w);
    }
  }
  __device__ void store(const uint32_t (&own)[kOwnWords], Stage& to) const {
#pragma unroll
    for (int i = 0; i < kOwnWords; ++i) {
      const auto [line, w] = place(i);
      to[w][line] = own[i];
    }
  }

 private:
  struct Place {
    int line, w;
  };
  __device__ Place place(int i) const {
    const int t = int(threadIdx.x) + i * kProductThreads;
    return k_step == 1 ? Place{t / kWords, t % kWords} : Place{t % kProductTile, t / kProductTile};
  }
};

/// Σ_k of a line's packed codes and Σ_k weight_k · (packed + shift), k in increasing order: the terms'
/// inputs.
struct LineSums {
  int32_t plain = 0;
  double weighted = 0;

  template <bool Signed>
  __device__ void add(const Stage& words, int line, int64_t at, int64_t k, double shift, const float* weight,
                      int64_t step) {
    for (int w = 0; w < kWords; ++w) {
      const uint32_t word = words[w][line];
      plain = Signed ? cuda::dot4(0x01010101u, word, plain) : cuda::dot4(word, 0x01010101u, plain);
      for (int i = 0; weight && i < 4 && at + 4 * w + i < k; ++i) {
        const uint8_t byte = uint8_t(word >> (8 * i));
        const double value = Signed ? double(int8_t(byte)) : double(byte);
        weighted += double(weight[(at + 4 * w + i) * step]) * (value + shift);
      }
    }
  }
};

struct Aligned {
  bool a, b;  ///< lines of consecutive codes that start at multiples of four bytes
};

/// The 16 x 32 results of a warp: `acc` of mma_16x8x32, side by side.
struct WarpTile {
  int row, col, g, t;  ///< of the first result in the block's tile, and the lane's place
  int32_t acc[kProducts][4] = {};

  __device__ WarpTile() {
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    row = warp % kWarpsDown * 16, col = warp / kWarpsDown * kProducts * 8;
    g = lane / 4, t = lane % 4;
  }
  __device__ void add(const Stage& a, const Stage& b) {
#pragma unroll
    for (int w = 0; w < kWords; w += kStep) {
      const uint32_t of_a[4] = {a[w + t][row + g], a[w + t][row + g + 8], a[w + t + 4][row + g],
                                a[w + t + 4][row + g + 8]};
#pragma unroll
      for (int p = 0; p < kProducts; ++p) {
        const uint32_t of_b[2] = {b[w + t][col + 8 * p + g], b[w + t + 4][col + 8 * p + g]};
        cuda::mma_16x8x32(acc[p], of_a, of_b);
      }
    }
  }
  /// f(row, column, sum) of the block's tile.
  template <class F>
  __device__ void each(F f) const {
#pragma unroll
    for (int p = 0; p < kProducts; ++p)
#pragma unroll
      for (int i = 0; i < 4; ++i) f(row + g + i / 2 * 8, col + 8 * p + 2 * t + i % 2, acc[p][i]);
  }
};

__global__ void __launch_bounds__(kProductThreads)
    coded_gemm_kernel_cuda(const __grid_constant__ CodedGemmArgs g, CodedPlan p, Aligned aligned) {
  __shared__ Stage as[2], bs[2];
  __shared__ RowTerms rows[kProductTile];
  __shared__ ColTerms cols[kProductTile];
  __shared__ detail::OffsetSums offsets;
  const cuda::ProductTile at(g);
  const BatchIndex& index = at.batch;
  const Lines a(g.a, index, at.m, g.m, g.k, p.a.zero, aligned.a),
      b(g.b, index, at.n, g.n, g.k, p.b.zero, aligned.b);
  const int thread = int(threadIdx.x), line = thread % kProductTile;
  const bool sums_a = thread < kProductTile, sums_b = !sums_a && thread < 2 * kProductTile,
             exact = p.out == IntOut::f64;
  // the offsets of one operand weight the codes of the other
  const float *const e = exact && g.b.offset_stride.k ? detail::batch_offsets(g.b, index) : nullptr,
                     *const o = exact && g.a.offset_stride.k ? detail::batch_offsets(g.a, index) : nullptr;
  if (exact && thread == kProductThreads - 1) offsets = detail::offset_sums(g, index);

  LineSums sums;
  WarpTile tile;
  uint32_t own_a[kOwnWords], own_b[kOwnWords];
  constexpr int kDepth = 4 * kWords;
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
  tile.each([&](int i, int j, int32_t acc) {
    if (at.m + i >= g.m || at.n + j >= g.n) return;
    const int64_t to = index.offset(g.c_batch) + (at.m + i) * g.c_row + (at.n + j) * g.c_col;
    const RowTerms& row = rows[i];
    const ColTerms& col = cols[j];
    const int32_t sum = detail::corrected(acc, p.factor / 2, row.correction, col.correction);
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

bool word_aligned(const GemmOperand& o) {
  int64_t all = int64_t(reinterpret_cast<uintptr_t>(o.data)) | o.stride.row;
  for (const int64_t s : o.stride.batch) all |= s;
  return o.stride.k == 1 && all % 4 == 0;
}

void coded_gemm_cuda(const CodedGemmArgs& args, Stream stream) {
  CodedGemmArgs g = args;
  detail::fold_batches(g, g.quantize ? &g.quantize_stride : nullptr);
  const unsigned blocks = cuda::product_blocks("coded_gemm", g);
  if (blocks == 0) return;
  const int64_t codes = g.batch[0] * g.batch[1] * g.batch[2] * g.m * g.k;
  if (g.quantize && codes > 0)
    cuda::launch("coded_gemm", quantize_kernel, unsigned(std::min<int64_t>((codes + 255) / 256, 1 << 16)),
                 256, stream, g, codes);
  cuda::launch("coded_gemm", coded_gemm_kernel_cuda, blocks, kProductThreads, stream, g, CodedPlan(g),
               Aligned{word_aligned(g.a), word_aligned(g.b)});
}

const CudaKernel<CodedGemmArgs> registered(coded_gemm_kernel, coded_gemm_cuda);

}  // namespace
}  // namespace lowbit
