#include "autograd/ops/embedding.h"

#include "autograd/ops/launch.cuh"
#include "tensor/engine/pointwise.cuh"

namespace lowbit {
namespace {

struct GatherElement {
  const float* table;
  const int64_t* ids;
  int64_t n;
  __device__ float operator()(int64_t i) const { return table[ids[i / n] * n + i % n]; }
};
/// Every table element reads all ids: no atomics, the order of the sums is the position's.
struct ScatterElement {
  const float* gy;
  const int64_t* ids;
  int64_t count, n;
  __device__ float operator()(int64_t i) const {
    const int64_t row = i / n, c = i % n;
    float sum = 0;
    for (int64_t p = 0; p < count; ++p)
      if (ids[p] == row) sum += gy[p * n + c];
    return sum;
  }
};

void gather_cuda(const GatherRowsArgs& a, Stream stream) {
  cuda::require_f32("gather_rows", a.table);
  cuda::pointwise_indexed({a.y}, GatherElement{a.table.as<float>(), a.ids.as<int64_t>(), a.n}, stream);
}
void scatter_cuda(const ScatterRowsArgs& a, Stream stream) {
  cuda::require_f32("scatter_rows", a.gy);
  cuda::pointwise_indexed({a.dtable}, ScatterElement{a.gy.as<float>(), a.ids.as<int64_t>(), a.count, a.n},
                          stream);
}

const CudaKernel<GatherRowsArgs> gather(gather_rows, gather_cuda);
const CudaKernel<ScatterRowsArgs> scatter(scatter_rows, scatter_cuda);

}  // namespace
}  // namespace lowbit
