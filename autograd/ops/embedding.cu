#include "autograd/ops/embedding.h"

#include "autograd/ops/launch.cuh"
#include "tensor/core/index_fault.cuh"
#include "tensor/engine/pointwise.cuh"
#include "tensor/hd/row.h"

namespace lowbit {
namespace {

struct GatherElement {
  const float* table;
  const int64_t* ids;
  int64_t n;
  cuda::IndexRange rows;
  __device__ float operator()(int64_t i) const {
    const int64_t id = ids[i / n];
    return rows.holds(id, i / n) ? table[id * n + i % n] : 0.f;
  }
};
constexpr int kThreads = 256;

/// A warp for each row of the table reads all ids: no atomics, the order of the sums is the position's.
__global__ void scatter_kernel(const float* gy, const int64_t* ids, int64_t count, int64_t n, int64_t rows,
                               float* table) {
  const int64_t row = (blockIdx.x * int64_t(kThreads) + threadIdx.x) / kLanes;
  if (row >= rows) return;
  const int lane = int(threadIdx.x) % kLanes;
  float* const to = table + row * n;
  for (int64_t c = lane; c < n; c += kLanes) to[c] = 0;
  for (int64_t p = 0; p < count; ++p)
    if (ids[p] == row)
      for (int64_t c = lane; c < n; c += kLanes) to[c] += gy[p * n + c];
}

void gather_cuda(const GatherRowsArgs& a, Stream stream) {
  cuda::require_f32("gather_rows", a.table);
  const cuda::IndexRange rows{cuda::index_fault(stream.device), a.op, "id", "position", a.rows};
  cuda::pointwise_indexed({a.y}, GatherElement{a.table.as<float>(), a.ids.as<int64_t>(), a.n, rows}, stream);
}
void scatter_cuda(const ScatterRowsArgs& a, Stream stream) {
  cuda::require_f32("scatter_rows", a.gy);
  if (a.dtable.numel() == 0) return;
  cuda::launch("scatter_rows", scatter_kernel, unsigned(ceil_div(a.rows * kLanes, kThreads)), kThreads,
               stream, a.gy.as<float>(), a.ids.as<int64_t>(), a.count, a.n, a.rows, a.dtable.as<float>());
}

const CudaKernel<GatherRowsArgs> gather(gather_rows, gather_cuda);
const CudaKernel<ScatterRowsArgs> scatter(scatter_rows, scatter_cuda);

}  // namespace
}  // namespace lowbit
