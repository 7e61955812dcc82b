#include "data/image/device_crop.h"

#include "tensor/core/cuda_runtime.cuh"

namespace lowbit {
namespace {

constexpr int kColumns = 32, kLines = 8, kThreads = kColumns * kLines;  // of a block's tile of one image
constexpr int kTaps = 4 * kMaxShrink + 1;                               // of the cubic
constexpr int kRows = (kLines - 1) * kMaxShrink + kTaps + 1;            // of the source, for a tile
static_assert(kRows * kColumns * 3 + (kColumns + kLines) * kTaps * 4 < 40000);

/// The weights of one output of an axis.
struct Taps {
  int first, count;
  int32_t weight[kTaps];
  __device__ void compute(const ResizeAxis& axis, int output) {
    const double centre = axis.centre(output);
    first = axis.first(centre), count = axis.end(centre) - first;
    double total = 0;
    for (int k = 0; k < count; ++k) total += axis.exact(first + k, centre);
    for (int k = 0; k < count; ++k) weight[k] = ResizeAxis::rounded(axis.exact(first + k, centre), total);
  }
};

/// A tile of one image: its columns of the rows it needs, as bytes, then its rows from these.
__global__ void __launch_bounds__(kThreads) crop_kernel(const __grid_constant__ FinishCropsArgs a) {
  __shared__ Taps across[kColumns], down[kLines];
  __shared__ uint8_t rows[kRows][kColumns * 3];
  const int size = int(a.out.shape[2]), tiles = (size + kColumns - 1) / kColumns;
  const int x0 = int(blockIdx.x) % tiles * kColumns, y0 = int(blockIdx.x) / tiles * kLines;
  const int columns = size - x0 < kColumns ? size - x0 : kColumns,
            lines = size - y0 < kLines ? size - y0 : kLines;
  const CropPlan& p = static_cast<const CropPlan*>(a.plans.data)[blockIdx.y];
  const ResizeWindow& w = p.window;
  const int t = int(threadIdx.x);
  if (t < columns) across[t].compute(ResizeAxis(p.width, w.full_width, w.filter), w.left + x0 + t);
  if (const int y = t - kColumns; y >= 0 && y < lines)
    down[y].compute(ResizeAxis(p.height, w.full_height, w.filter), w.top + y0 + y);
  __syncthreads();
  const int row0 = down[0].first, count = down[lines - 1].first + down[lines - 1].count - row0;
  const uint8_t* const pixels = static_cast<const uint8_t*>(a.bytes.data) + p.offset;
  const int x = t % kColumns;
  for (int r = t / kColumns; r < count && x < columns; r += kLines) {
    const Taps& taps = across[x];
    const uint8_t* from = pixels + (row0 + r) * p.row + taps.first * 3;
    int32_t sum[3] = {kWeightHalf, kWeightHalf, kWeightHalf};
    for (int k = 0; k < taps.count; ++k, from += 3)
      for (int c = 0; c < 3; ++c) sum[c] += from[c] * taps.weight[k];
    for (int c = 0; c < 3; ++c) rows[r][x * 3 + c] = weighted_pixel(sum[c]);
  }
  __syncthreads();
  const int y = t / kColumns;
  if (x >= columns || y >= lines) return;
  const Taps& taps = down[y];
  int32_t sum[3] = {kWeightHalf, kWeightHalf, kWeightHalf};
  for (int k = 0; k < taps.count; ++k)
    for (int c = 0; c < 3; ++c) sum[c] += rows[taps.first - row0 + k][x * 3 + c] * taps.weight[k];
  const int to_x = w.flip_horizontal ? size - 1 - x0 - x : x0 + x,
            to_y = w.flip_vertical ? size - 1 - y0 - y : y0 + y;
  const int64_t plane = int64_t(size) * size;
  float* const out = static_cast<float*>(a.out.data) + blockIdx.y * 3 * plane + int64_t(to_y) * size + to_x;
  for (int c = 0; c < 3; ++c)
    out[c * plane] = (float(weighted_pixel(sum[c])) / 255.0f - a.mean[c]) / a.deviation[c];
}

void finish_crops_cuda(const FinishCropsArgs& a, Stream stream) {
  const int64_t n = a.out.shape[0], size = a.out.shape[2];
  const unsigned tiles = unsigned((size + kColumns - 1) / kColumns * ((size + kLines - 1) / kLines));
  LOWBIT_CHECK(n < 65536, shape, "finish_crops", "a batch holds at most 65535 images (got ", n, ")");
  if (n > 0) cuda::launch("finish_crops", crop_kernel, dim3(tiles, unsigned(n)), kThreads, stream, a);
}

const CudaKernel<FinishCropsArgs> registered(finish_crops, finish_crops_cuda);

}  // namespace
}  // namespace lowbit
