// Floats times codes on integers (gemm_digits.h) on CUDA, with the bits of the CPU: the sums are exact, so
// only the scale of a line has an order, that of digit_terms.h. The floats are always the rows here; a kernel
// measures every line before the products, which cut it into digits on the way to shared memory. Each of the
// two kernels is one launch for all products of a list: their blocks stand behind each other.

#include "tensor/engine/code_tile.cuh"
#include "tensor/engine/column.cuh"
#include "tensor/engine/digit_terms.h"
#include "tensor/engine/gemm_digits.h"
#include "tensor/engine/gemm_pack.h"

namespace lowbit {
namespace {

using cuda::kProductThreads;
using cuda::kProductTile;
using detail::digit_products;
using detail::DigitLine;
using detail::DigitPlan;
using detail::DigitProducts;
using detail::kMaxDigits;

constexpr int kThreads = 256;

/// A product and its blocks in both launches.
struct DigitTask {
  GemmArgs g;
  DigitPlan plan;
  int64_t lines;  ///< of floats, in all batches
  unsigned measures, tiles;
  int zero;   ///< packed code = code − zero
  int added;  ///< so many products after it have no tiles of their own: its blocks add them to its results
  bool aligned;
};
struct SumTask {
  detail::ColumnSumArgs s;
  unsigned blocks, across;
  unsigned* counters;
};
struct DigitTasks {
  int count = 0, sums = 0;
  DigitTask task[kProductsTogether];
  SumTask sum[detail::kDigitSums];
};
static_assert(sizeof(DigitTasks) <= 4096, "the parameters of a kernel");

/// Line `row` of the floats of one batch: values already times the codes' scale where that runs along k.
struct FloatLine {
  const float *x, *scale;
  int64_t step, scale_step;
  __device__ FloatLine(const GemmArgs& g, const BatchIndex& i, int64_t row)
      : x(static_cast<const float*>(g.a.data) + i.offset(g.a.stride.batch) + row * g.a.stride.row),
        scale(g.b.scale_stride.k ? g.b.scale + i.offset(g.b.scale_stride.batch) : nullptr),
        step(g.a.stride.k),
        scale_step(g.b.scale_stride.k) {}
  __device__ float operator[](int64_t k) const { return x[k * step] * (scale ? scale[k * scale_step] : 1.f); }
  __device__ int32_t fixed(int64_t k, float v) const { return int32_t(math::rint((*this)[k] * v)); }
};

/// Everything but the sums.
__device__ DigitLine line_of(const GemmArgs& g, const DigitPlan& p, int32_t top, float squares) {
  const detail::LineScale s = detail::line_scale(top, squares, g.k, g.digits, p.heavy_allowed);
  return {g.alpha * detail::unit_of(top, s.v), 0, 0, s.v, s.digits};
}

/// Lane j of D: the terms j, j + 8, … of a line.
__device__ double offset_lane(const GemmArgs& g, const BatchIndex& i, const FloatLine& x, int j) {
  const auto& os = g.b.offset_stride;
  double sum = 0;
#pragma unroll 8
  for (int64_t k = j; k < g.k; k += detail::kOffsetLanes)
    sum += double(x.x[k * x.step]) * (os.k ? double(g.b.offset[i.offset(os.batch) + k * os.k]) : 1.0);
  return sum;
}

/// A warp for each line: neighbouring lanes read neighbouring k.
__device__ void measure_rows(const GemmArgs& g, const DigitPlan& p, int64_t lines, int64_t block) {
  const int64_t line = (block * kThreads + threadIdx.x) / 32;
  if (line >= lines) return;
  const int lane = int(threadIdx.x % 32);
  const BatchIndex index = BatchIndex::of(g, line / g.m);
  const FloatLine x(g, index, line % g.m);
  static_assert(detail::kRowLanes == 32);
  int32_t top = 0;
  float own = 0, squares = 0;
  for (int64_t k = lane; k < g.k; k += 32) {
    const float value = x[k];
    top = math::max(top, detail::magnitude_bits(value));
    own += value * value;
  }
  for (int i = 0; i < 32; ++i) squares += __shfl_sync(0xffffffffu, own, i);
  for (int w = 16; w > 0; w /= 2) top = math::max(top, __shfl_xor_sync(0xffffffffu, top, w));
  DigitLine l = line_of(g, p, top, squares);
  int64_t sum = 0;
  for (int64_t k = lane; k < g.k; k += 32) sum += x.fixed(k, l.v);
  for (int w = 16; w > 0; w /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, w);
  l.sum = double(sum);
  l.offset = l.factor * l.sum;
  if (detail::sums_floats(g.b)) {
    double own_terms = lane < detail::kOffsetLanes ? offset_lane(g, index, x, lane) : 0;
    for (int w = detail::kOffsetLanes / 2; w > 0; w /= 2)
      own_terms += __shfl_xor_sync(0xffffffffu, own_terms, w);
    l.offset = g.alpha * own_terms;
  }
  if (lane == 0) static_cast<DigitLine*>(g.work)[line] = l;
}

/// A block measures 64 neighbouring lines, which its warps read side by side; two warps each are the lanes of
/// a column's sum.
constexpr int kLinesOfBlock = kThreads / detail::kColumnLanes;
struct ColumnParts {
  int32_t top[detail::kColumnLanes][kLinesOfBlock];
  float squares[detail::kColumnLanes][kLinesOfBlock];
  int64_t sum[detail::kColumnLanes][kLinesOfBlock];
  double terms[detail::kOffsetLanes][kLinesOfBlock];
  DigitLine line[kLinesOfBlock];
};

__device__ void measure_columns(const GemmArgs& g, const DigitPlan& p, int64_t lines, int64_t block) {
  constexpr int kLanes = detail::kColumnLanes, kAhead = 8;  // loads on their way at a time
  static_assert(detail::kOffsetLanes == 2 * kLanes);
  __shared__ ColumnParts of;
  const int own = int(threadIdx.x) % kLinesOfBlock, lane = int(threadIdx.x) / kLinesOfBlock;
  const int64_t line = block * kLinesOfBlock + own, count = line < lines ? g.k : 0;
  const BatchIndex index = BatchIndex::of(g, line < lines ? line / g.m : 0);
  const FloatLine x(g, index, line < lines ? line % g.m : 0);
  const auto each = [&](auto f) {  // the lane's values, in order; zeros past the end
    for (int64_t k = lane; k < count; k += kLanes * kAhead) {
      float v[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) v[i] = k + i * kLanes < count ? x[k + i * kLanes] : 0.f;
#pragma unroll
      for (int i = 0; i < kAhead; ++i) f(v[i]);
    }
  };
  int32_t top = 0;
  float squares = 0;
  each([&](float v) { top = math::max(top, detail::magnitude_bits(v)), squares += v * v; });
  of.top[lane][own] = top, of.squares[lane][own] = squares;
  __syncthreads();
  if (lane == 0) {
    squares = 0;
    for (int j = 0; j < kLanes; ++j) top = math::max(top, of.top[j][own]), squares += of.squares[j][own];
    of.line[own] = line_of(g, p, top, squares);
  }
  __syncthreads();
  DigitLine l = of.line[own];
  int64_t sum = 0;
  each([&](float v) { sum += int32_t(math::rint(v * l.v)); });
  of.sum[lane][own] = sum;
  const bool floats = detail::sums_floats(g.b);
  if (floats && line < lines)
    for (const int j : {lane, lane + kLanes}) of.terms[j][own] = offset_lane(g, index, x, j);
  __syncthreads();
  if (lane > 0 || line >= lines) return;
  sum = 0;
  for (int j = 0; j < kLanes; ++j) sum += of.sum[j][own];
  l.sum = double(sum);
  l.offset = l.factor * l.sum;
  if (floats) {
    for (int w = detail::kOffsetLanes / 2; w > 0; w /= 2)
      for (int j = 0; j < w; ++j) of.terms[j][own] += of.terms[j + w][own];
    l.offset = g.alpha * of.terms[0][own];
  }
  static_cast<DigitLine*>(g.work)[line] = l;
}

struct SummedColumns {
  const float* x;
  int64_t cols;
  __device__ float operator()(int64_t m, int64_t n) const { return x[m * cols + n]; }
};

__global__ void __launch_bounds__(kThreads, 1) measure_kernel(const __grid_constant__ DigitTasks all) {
  unsigned block = blockIdx.x;
  if (const DigitTask* const t = cuda::task_at(all.task, all.count, &DigitTask::measures, block)) {
    if (t->plan.floats_as_rows)
      measure_rows(t->g, t->plan, t->lines, block);
    else
      measure_columns(t->g, t->plan, t->lines, block);
  } else if (const SumTask* const sum = cuda::task_at(all.sum, all.sums, &SumTask::blocks, block)) {
    const detail::ColumnSumArgs& s = sum->s;
    const unsigned across = block % sum->across;
    cuda::detail::column_block(s.rows, s.cols, SummedColumns{s.x, s.cols}, s.work, Pack<float*, 1>{{s.out}},
                               sum->counters + across, across, block / sum->across,
                               sum->blocks / sum->across);
  }
}

/// A stage of the floats' lines: words of four k for each digit.
struct FloatStage {
  cuda::WordStage digit[kMaxDigits];
};

/// Cuts 64 k of the block's lines into digits. `digits`: of the whole block.
__device__ void stage_floats(const GemmArgs& g, const BatchIndex& index, int64_t first,
                             const DigitLine* lines, int digits, int64_t at, FloatStage& to) {
  const bool along_k = g.a.stride.k == 1;
  for (int t = int(threadIdx.x); t < cuda::kStageWords * kProductTile; t += kProductThreads) {
    const int line = along_k ? t / cuda::kStageWords : t % kProductTile,
              w = along_k ? t % cuda::kStageWords : t / kProductTile;
    uint32_t word[kMaxDigits] = {};
    if (first + line < g.m) {
      const FloatLine x(g, index, first + line);
      for (int i = 0; i < 4 && at + 4 * w + i < g.k; ++i) {
        const int32_t q = x.fixed(at + 4 * w + i, lines[line].v);
#pragma unroll
        for (int d = 0; d < kMaxDigits; ++d)
          if (d < digits) word[d] |= uint32_t(detail::digit_of(q, digits, d, false)) << (8 * i);
      }
    }
#pragma unroll
    for (int d = 0; d < kMaxDigits; ++d)
      if (d < digits) to.digit[d][w][line] = word[d];
  }
}

/// What a column of codes adds.
struct CodeLine {
  double factor, add, offset;
};

/// A block's tile of a product: what it shares, and the results.
struct DigitTile {
  FloatStage as;
  cuda::WordStage bs;
  DigitLine rows[kProductTile];
  CodeLine cols[kProductTile];
  int digits;
};

/// f(row, column, p, i, y) with every result of the thread, of which p and i are the numbers; row and column
/// in the tile.
template <class F>
__device__ void multiply_tile(const DigitTask& task, const cuda::ProductTile& at, DigitTile& of, F f) {
  const GemmArgs& g = task.g;
  const BatchIndex& index = at.batch;
  const cuda::CodeLines codes(g.b, index, at.n, g.n, g.k, task.zero, task.aligned);
  const int thread = int(threadIdx.x), line = thread % kProductTile;
  const int64_t batch = (index.i[0] * g.batch[1] + index.i[1]) * g.batch[2] + index.i[2];
  if (thread == 0) of.digits = g.digits;
  if (thread < kProductTile)
    of.rows[line] = at.m + line < g.m ? static_cast<const DigitLine*>(g.work)[batch * g.m + at.m + line]
                                      : DigitLine{0, 0, 0, 0, g.digits};
  __syncthreads();
  if (thread < kProductTile && of.rows[line].digits == kMaxDigits)
    of.digits = kMaxDigits;  // all write the same
  __syncthreads();
  const int digits = of.digits;

  cuda::WarpTile tile[kMaxDigits];
  int32_t code_sum = 0;
  const bool sums = thread >= kProductTile && thread < 2 * kProductTile;
  for (int64_t k = 0; k < g.k; k += 4 * cuda::kStageWords) {
    stage_floats(g, index, at.m, of.rows, digits, k, of.as);
    uint32_t own[cuda::kOwnWords];
    codes.fetch(k, own), codes.store(own, of.bs);
    __syncthreads();
    for (int w = 0; sums && w < cuda::kStageWords; ++w)
      code_sum = cuda::dot4(0x01010101u, of.bs[w][line], code_sum);
#pragma unroll
    for (int d = 0; d < kMaxDigits; ++d)
      if (d < digits) tile[d].add(of.as.digit[d], of.bs);
    __syncthreads();
  }
  if (sums && at.n + line < g.n) {
    const auto &ss = g.b.scale_stride, &os = g.b.offset_stride;
    const int64_t n = at.n + line;
    of.cols[line] = {ss.k ? 1 : double(g.b.scale[index.offset(ss.batch) + n * ss.row]), double(code_sum),
                     !g.b.offset ? 0
                     : os.k      ? 1
                                 : double(g.b.offset[index.offset(os.batch) + n * os.row])};
  }
  __syncthreads();
  const double col_unit = -double(detail::digit_zero(digits)) - (digits == kMaxDigits ? 0x1p31 : 0),
               shift = double(task.zero) + g.b.shift;
  tile[0].each([&](int i, int j, int p, int e) {
    if (at.m + i >= g.m || at.n + j >= g.n) return;
    double sum = 0, unit = 1;
#pragma unroll
    for (int d = 0; d < kMaxDigits; ++d, unit *= 256)
      if (d < digits) sum += unit * double(tile[d].acc[p][e]);
    sum += shift * of.rows[i].sum + col_unit * of.cols[j].add;
    const double y = of.rows[i].factor * of.cols[j].factor * sum;
    f(i, j, p, e, float(g.b.offset ? y + of.rows[i].offset * of.cols[j].offset : y));
  });
}

__global__ void __launch_bounds__(kProductThreads, 1)
    digit_gemm_kernel(const __grid_constant__ DigitTasks all) {
  __shared__ DigitTile shared;
  unsigned block = blockIdx.x;
  const DigitTask& first = *cuda::task_at(all.task, all.count, &DigitTask::tiles, block);
  const GemmArgs& g = first.g;
  const cuda::ProductTile at(g, block);
  float* const c = static_cast<float*>(g.c) + at.batch.offset(g.c_batch);
  const auto store = [&](int i, int j, float y) { c[(at.m + i) * g.c_row + (at.n + j) * g.c_col] = y; };
  if (first.added == 0) {
    multiply_tile(first, at, shared, [&](int i, int j, int, int, float y) { store(i, j, y); });
    return;
  }
  float value[cuda::kProducts][4] = {};
  for (int k = 0; k <= first.added; ++k) {
    if (k > 0) __syncthreads();  // the lines of the product before it have been read
    const bool last = k == first.added;
    multiply_tile((&first)[k], at, shared, [&](int i, int j, int p, int e, float y) {
      value[p][e] = k == 0 ? y : value[p][e] + y;
      if (last) store(i, j, value[p][e]);
    });
  }
}

constexpr const char* kOp = "gemm.digits";

DigitTask task_of(GemmArgs g) {
  DigitTask t{};
  t.plan = detail::digit_plan(g);  // before the operands change places
  if (g.a.dtype != DType::f32) {
    std::swap(g.a, g.b);
    std::swap(g.m, g.n);
    std::swap(g.c_row, g.c_col);
  }
  detail::fold_batches(g);
  t.g = g, t.zero = g.b.hi > 127 ? 128 : 0, t.aligned = cuda::word_aligned(g.b);
  t.tiles = cuda::product_blocks(kOp, g);
  t.lines = t.tiles ? g.batch[0] * g.batch[1] * g.batch[2] * g.m : 0;
  t.measures =
      unsigned(t.plan.floats_as_rows ? ceil_div(t.lines * 32, kThreads) : ceil_div(t.lines, kLinesOfBlock));
  return t;
}

void digit_products_cuda(const DigitProducts& from, Stream stream) {
  DigitTasks all;
  int64_t measures = 0, tiles = 0;
  DigitTask* first = nullptr;  // of those that are added up
  for (; all.count < from.count; ++all.count) {
    DigitTask& t = all.task[all.count] = task_of(from.product[all.count]);
    if (from.product[all.count].beta == 0)
      first = &t;
    else
      ++first->added, t.tiles = 0;
    measures += t.measures, tiles += t.tiles;
  }
  int64_t counters = 0;
  for (int i = 0; i < from.sums; ++i) {
    const detail::ColumnSumArgs& s = from.sum[i];
    const int64_t across = ceil_div(s.cols, kThreads),
                  blocks = std::max<int64_t>(1, ceil_div(s.rows, kRowBlock));
    if (across == 0) continue;
    measures += across * blocks;
    all.sum[all.sums++] = {s, unsigned(across * blocks), unsigned(across),
                           cuda::block_counters(stream) + counters};
    counters += across;
  }
  LOWBIT_CHECK(measures <= 0x7fffffff && tiles <= 0x7fffffff && counters <= cuda::kBlockCounters, shape, kOp,
               "too large for the cuda kernel (got ", tiles, " tiles)");
  if (measures) cuda::launch(kOp, measure_kernel, unsigned(measures), kThreads, stream, all);
  if (tiles) cuda::launch(kOp, digit_gemm_kernel, unsigned(tiles), kProductThreads, stream, all);
}

const CudaKernel<DigitProducts> registered(digit_products, digit_products_cuda);

}  // namespace
}  // namespace lowbit
