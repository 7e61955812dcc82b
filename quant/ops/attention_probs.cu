// A block makes 16 rows of scores at a time in shared memory, on tensor cores, and everything else from
// there; a warp for each row, so that the statistics have the order of summation of all row operations.

#include "quant/ops/attention_probs.h"

#include "quant/ops/lsq.cuh"
#include "tensor/engine/code_tile.cuh"
#include "tensor/engine/coded_terms.h"
#include "tensor/engine/column.cuh"

namespace lowbit {
namespace {

using cuda::CodeLines;
using cuda::kProductThreads;
using cuda::kProductTile;
using cuda::kStageWords;
using cuda::LineSums;
using detail::CodedPlan;
using detail::ColTerms;
using detail::IntOut;
using detail::RowTerms;

constexpr int kRows = kProbsRows, kPitch = kProbsPitch, kWarps = kProductThreads / 32,
              kDepth = 4 * kStageWords;
static_assert(kProductTile == 8 * kWarps, "a warp has 16 x 8 results");
using Words = uint32_t[kPitch];  ///< of four consecutive k, one for each row

/// Fixed shared memory of a product.
struct ProductStage {
  cuda::WordStage b;
  RowTerms rows[kRows];
  ColTerms cols[kProductTile];
  detail::OffsetSums offsets;
};
static_assert(sizeof(ProductStage) <= kProbsFixed);

/// result(i, n, value) for the products of the rows first, first + 1, … of A, whose packed words lie in `a`,
/// with every line n of B. The whole block takes part, and what it wrote to `a` before is seen.
template <class F>
__device__ void multiply_rows(const CodedGemmArgs& g, const CodedPlan& p, const BatchIndex& index,
                              int64_t first, const Words* a, bool aligned, ProductStage& s, F result) {
  const int thread = int(threadIdx.x), line = thread % kProductTile, lane = thread % 32, warp = thread / 32;
  const bool sums_b = thread < kProductTile, sums_a = !sums_b && thread < kProductTile + kRows,
             exact = p.out == IntOut::f64;
  const float *const e = exact && g.b.offset_stride.k ? detail::batch_offsets(g.b, index) : nullptr,
                     *const o = exact && g.a.offset_stride.k ? detail::batch_offsets(g.a, index) : nullptr;
  if (exact && thread == kProductThreads - 1) s.offsets = detail::offset_sums(g, index);
  __syncthreads();
  if (sums_a && first + line < g.m) {
    LineSums own;
    for (int64_t k = 0; k < g.k; k += kDepth)
      own.add<false>(a + k / 4, line, k, g.k, p.a.shift, e, g.b.offset_stride.k);
    s.rows[line] = detail::row_terms(g, p, index, first + line, own.plain, own.weighted, s.offsets);
  }
  const int row = lane / 4, word = lane % 4, col = 8 * warp;
  for (int64_t n0 = 0; n0 < g.n; n0 += kProductTile) {
    const CodeLines b(g.b, index, n0, g.n, g.k, p.b.zero, aligned);
    int32_t acc[4] = {};
    LineSums sums;
    for (int64_t k = 0; k < g.k; k += kDepth) {
      uint32_t own[cuda::kOwnWords];
      b.fetch(k, own);
      __syncthreads();  // the stage has been read
      b.store(own, s.b);
      __syncthreads();
      if (sums_b) sums.add<true>(s.b, line, k, g.k, p.b.shift, o, g.a.offset_stride.k);
#pragma unroll
      for (int w = 0; w < kStageWords; w += cuda::kWarpWords) {
        const Words* const at = a + k / 4 + w;
        const uint32_t of_a[4] = {at[word][row], at[word][row + 8], at[word + 4][row], at[word + 4][row + 8]};
        const uint32_t of_b[2] = {s.b[w + word][col + row], s.b[w + word + 4][col + row]};
        cuda::mma_16x8x32(acc, of_a, of_b);
      }
    }
    if (sums_b && n0 + line < g.n)  // the last reader of these is two barriers back
      s.cols[line] = detail::col_terms(g, p, index, n0 + line, sums.plain, sums.weighted);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = row + i / 2 * 8, n = col + 2 * word + i % 2;
      if (first + at >= g.m || n0 + n >= g.n) continue;
      const RowTerms& r = s.rows[at];
      const ColTerms& c = s.cols[n];
      const int32_t sum = detail::corrected(acc[i], p.factor / 2, r.correction, c.correction);
      result(at, n0 + n,
             p.out == IntOut::f32 ? detail::scaled_result(sum, r.scale, c.scale, c.bias)
                                  : detail::exact_result(acc[i], r, c));
    }
  }
}

struct Aligned {
  bool q, k, v;  ///< cuda::word_aligned
};

/// Rows of q as packed words.
__device__ void stage_q(const CodedGemmArgs& g, const CodedPlan& p, const BatchIndex& index, int64_t first,
                        bool aligned, Words* q) {
  const CodeLines lines(g.a, index, first, g.m, g.k, p.a.zero, aligned);
  const int words = int(probs_words(g.k));
  for (int t = int(threadIdx.x); t < words * kRows; t += kProductThreads)
    q[t % words][t / words] = lines.word(t / words, 4 * (t % words));
}

/// Scores of 16 rows of one batch.
__device__ void make_scores(const CodedGemmArgs& g, const CodedPlan& p, int64_t batch, int64_t first,
                            const Aligned& aligned, Words* q, ProductStage& stage, float* scores) {
  const BatchIndex index = BatchIndex::of(g, batch);
  stage_q(g, p, index, first, aligned.q, q);
  multiply_rows(g, p, index, first, q, aligned.k, stage,
                [&](int i, int64_t n, float value) { scores[i * g.n + n] = value; });
  __syncthreads();
}

__device__ QParam<float> param_of_row(const LsqCall& c, int64_t row, int64_t n) {
  return lsq_param<float>(c, row * n / c.inner % c.groups);
}

__global__ void __launch_bounds__(kProductThreads, 1)
    forward_kernel(const __grid_constant__ AttentionProbsFwdArgs a, CodedPlan of_scores, CodedPlan of_context,
                   Aligned aligned) {
  __shared__ ProductStage stage;
  const CodedGemmArgs& g = a.c.scores;
  const int64_t blocks = ceil_div(g.m, kRows), batch = blockIdx.x / blocks,
                first = blockIdx.x % blocks * kRows;
  float* const scores = cuda::dynamic_shared<float>();
  Words *const q = reinterpret_cast<Words*>(scores + kRows * g.n), *const codes = q + probs_words(g.k);
  if (a.context.c)
    for (int t = int(threadIdx.x); t < int(probs_words(g.n)) * kPitch; t += kProductThreads)
      codes[t / kPitch][t % kPitch] = 0;
  make_scores(g, of_scores, batch, first, aligned, q, stage, scores);
  const int zero = of_context.a.zero;
  const bool context = a.context.c != nullptr;
  for (int i = int(threadIdx.x) / 32; i < kRows && first + i < g.m; i += kWarps) {
    float* const p = scores + i * g.n;
    const int64_t row = batch * g.m + first + i;
    attention_probs_softmax(cuda::WarpRow{}, a.c, row, p);
    uint8_t* const kept = a.codes.data ? static_cast<uint8_t*>(a.codes.data) + row * g.n : nullptr;
    auto* const packed = reinterpret_cast<uint8_t*>(codes) + 4 * i;
    attention_probs_row(cuda::WarpRow{}, p, g.n, param_of_row(a.c.lsq, row, g.n), float(a.shift),
                        [=](int64_t j, int32_t code) {
                          if (kept) kept[j] = uint8_t(code);
                          if (context) packed[j / 4 * (4 * kPitch) + j % 4] = uint8_t(code - zero);
                        });
  }
  if (!context) return;
  const CodedGemmArgs& c = a.context;
  const BatchIndex index = BatchIndex::of(c, batch);
  float* const to = static_cast<float*>(c.c) + index.offset(c.c_batch) + first * c.c_row;
  multiply_rows(c, of_context, index, first, codes, aligned.v, stage,
                [&](int i, int64_t n, float value) { to[i * c.c_row + n * c.c_col] = value; });
}

void forward_cuda(const AttentionProbsFwdArgs& a, Stream stream) {
  const CodedGemmArgs& g = a.c.scores;
  const int64_t blocks = g.batch[0] * g.batch[1] * g.batch[2] * ceil_div(g.m, kRows);
  LOWBIT_CHECK(blocks <= 0x7fffffff, shape, "attention_probs", "too large for the cuda kernel (got m=", g.m,
               ")");
  if (blocks == 0) return;
  const bool context = a.context.c != nullptr;
  cuda::launch_shared(
      "attention_probs.fwd", forward_kernel, unsigned(blocks), kProductThreads,
      size_t(probs_shared(g.n, g.k, 1, context)), stream, a, CodedPlan(g), CodedPlan(a.context),
      Aligned{cuda::word_aligned(g.a), cuda::word_aligned(g.b), context && cuda::word_aligned(a.context.b)});
}

/// A lane's part of the sum of the chunk at hand; one warp for each sum.
struct ChunkSum {
  int64_t chunk, begin, end;
  float part = 0;

  __device__ ChunkSum(const ProbsChunks& c, int64_t first)
      : chunk(first), begin(c.begin(first)), end(c.end(first)) {}
  /// Elements [from, to) of the tensor, which `list` begins with.
  __device__ void add(const ProbsChunks& c, const float* list, int64_t from, int64_t to, float* sums) {
    const int lane = cuda::WarpRow::lane();
    for (int64_t at = from; at < to;) {
      const int64_t stop = to < end ? to : end;
      const int skip = (lane - int(at - begin)) & 31;
      for (int64_t i = at + skip; i < stop; i += 32) part += list[i - from];
      at = stop;
      if (at < end) return;
      float total[1] = {part};
      cuda::detail::warp_sum(total);
      if (lane == 0) sums[chunk] = total[0];
      ++chunk, part = 0;
      begin = at, end = chunk < c.count ? c.end(chunk) : at;
    }
  }
};

template <MaskRule M, bool Edges>
__global__ void __launch_bounds__(kProductThreads, 1)
    backward_kernel(const __grid_constant__ AttentionProbsBwdArgs a, CodedPlan of_scores, int64_t each,
                    Aligned aligned, unsigned* counter) {
  __shared__ ProductStage stage;
  const CodedGemmArgs& g = a.c.scores;
  const LsqCall& c = a.c.lsq;
  const ProbsChunks chunks(c);
  constexpr int kSums = Edges ? 3 : 1;
  const int64_t m = g.n, n = g.m, size = kRows * m;
  const int64_t chunk0 = blockIdx.x * each,
                chunk1 = chunk0 + each < chunks.count ? chunk0 + each : chunks.count;
  const int64_t begin = chunks.begin(chunk0), end = chunks.end(chunk1 - 1);
  float* const e = cuda::dynamic_shared<float>();
  Words* const q = reinterpret_cast<Words*>(e + kSums * size);
  const float* const gy = lsq_data<float>(a.gy);
  float *const ds = lsq_data<float>(a.dscores), *const partial = lsq_data<float>(a.partial);
  const int warp = int(threadIdx.x) / 32;
  const TieWeights<float> tie = TieWeights<float>::of(c.ties);
  ChunkSum sum(chunks, chunk0);
  const int64_t last = ceil_div(end, m);
  for (int64_t row = begin / m; row < last;) {
    const int64_t in_batch = row % n;
    int64_t count = n - in_batch < kRows ? n - in_batch : kRows;
    if (count > last - row) count = last - row;
    make_scores(g, of_scores, row / n, in_batch, aligned, q, stage, e);
    for (int i = warp; i < count; i += kWarps) {
      const int64_t flat = (row + i) * m;
      float* const own = e + i * m;
      attention_probs_softmax(cuda::WarpRow{}, a.c, row + i, own);
      // a row belongs to the block that has its first element
      AttentionProbsBwdRow<M, Edges>{own,
                                     gy + flat,
                                     flat >= begin ? ds + flat : nullptr,
                                     own,
                                     own + size,
                                     own + 2 * size,
                                     m,
                                     param_of_row(c, row + i, m),
                                     tie}(cuda::WarpRow{});
    }
    __syncthreads();
    if (warp < kSums) {
      const int64_t from = row * m > begin ? row * m : begin,
                    to = (row + count) * m < end ? (row + count) * m : end;
      sum.add(chunks, e + warp * size + (from - row * m), from, to, partial + warp * chunks.count);
    }
    __syncthreads();
    row += count;
  }
  if (!counter || !cuda::is_last_block(counter, gridDim.x)) return;
  if (warp < kSums) {
    const float* const list = partial + warp * chunks.count;
    const float total = cuda::WarpRow{}.sum(chunks.count, [=](int64_t i) { return cuda::seen(list + i); });
    cuda::WarpRow{}.once([&] { lsq_data<float>(a.sums)[warp] = total; });
  }
  __syncthreads();
  cuda::lsq_finish_block({c, a.sums, a.out});
}

/// Sums of runs from those of their chunks.
struct RunSums {
  const float* chunks;
  float* runs;
  int64_t per_run;
  template <class Row>
  LOWBIT_HD void operator()(const Row& row, int64_t r) const {
    const float* const list = chunks + r * per_run;
    float* const to = runs + r;
    const float total = row.sum(per_run, [=](int64_t i) { return list[i]; });
    row.once([=] { *to = total; });
  }
};
struct RunSum {
  const float* runs;
  int64_t groups;
  LOWBIT_HD float operator()(int64_t o, int64_t g) const { return runs[o * groups + g]; }
};

template <MaskRule M, bool Edges>
void backward_masked(const AttentionProbsBwdArgs& a, Stream stream) {
  const CodedGemmArgs& g = a.c.scores;
  const LsqCall& c = a.c.lsq;
  const ProbsChunks chunks(c);
  constexpr int kSums = Edges ? 3 : 1;
  constexpr int64_t kRowsOfBlock = 64;
  const int64_t runs = c.outer * c.groups;
  const bool whole = runs == 1 && chunks.count <= kChunk;  // one sum, which a warp adds up
  const int64_t shortest = c.inner < kChunk ? c.inner : kChunk,
                each = std::max<int64_t>(1, kRowsOfBlock * g.n / shortest),
                blocks = ceil_div(chunks.count, each);
  LOWBIT_CHECK(blocks <= 0x7fffffff, shape, "attention_probs", "too large for the cuda kernel (got m=", g.m,
               ")");
  cuda::launch_shared("attention_probs.bwd", backward_kernel<M, Edges>, unsigned(blocks), kProductThreads,
                      size_t(probs_shared(g.n, g.k, kSums, false)), stream, a, CodedPlan(g), each,
                      Aligned{cuda::word_aligned(g.a), cuda::word_aligned(g.b), false},
                      whole ? cuda::block_counters(stream) : nullptr);
  if (whole) return;  // the last block went on
  float *const partial = a.partial.as<float>(), *const sums = a.sums.as<float>(),
               *const of_runs = runs == 1 ? sums : partial + 3 * chunks.count,
               *const work = partial + 3 * (chunks.count + runs);
  for (int s = 0; s < kSums; ++s) {
    cuda::rows(runs, chunks.per_run, RunSums{partial + s * chunks.count, of_runs + s * runs, chunks.per_run},
               stream);
    if (runs > 1)
      cuda::columns(c.outer, c.groups, RunSum{of_runs + s * runs, c.groups}, work, stream,
                    sums + s * c.groups);
  }
  lsq_finish({c, a.sums, a.out}, stream.device);
}

template <MaskRule M>
void backward_ruled(const AttentionProbsBwdArgs& a, Stream stream) {
  if (a.edges)
    backward_masked<M, true>(a, stream);
  else
    backward_masked<M, false>(a, stream);
}

void backward_cuda(const AttentionProbsBwdArgs& a, Stream stream) {
  dispatch_mask(a.c.lsq.mask, [&](auto rule) { backward_ruled<decltype(rule)::value>(a, stream); });
}

const CudaKernel<AttentionProbsFwdArgs> forward(attention_probs_fwd, forward_cuda);
const CudaKernel<AttentionProbsBwdArgs> backward(attention_probs_bwd, backward_cuda);

}  // namespace
}  // namespace lowbit
