#include "autograd/ops/token_order.h"

#include "autograd/ops/launch.cuh"
#include "tensor/engine/row.cuh"

namespace lowbit {
namespace {

constexpr int kThreads = 256;

__global__ void drawn_kernel(DrawnOrderArgs a) { draw_order(a); }
void drawn_cuda(const DrawnOrderArgs& a, Stream stream) {
  cuda::launch("drawn_order", drawn_kernel, 1, 1, stream, a);
}

__global__ void rows_kernel(OrderRowsArgs a) {
  const int64_t r = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (r < a.batch * a.n) order_row(a, r);
}
void rows_cuda(const OrderRowsArgs& a, Stream stream) {
  cuda::launch("order_rows", rows_kernel, unsigned(ceil_div(a.batch * a.n, kThreads)), kThreads, stream, a);
}

const CudaKernel<DrawnOrderArgs> drawn(drawn_order_kernel, drawn_cuda);
const CudaKernel<OrderRowsArgs> rows(order_rows_kernel, rows_cuda);

}  // namespace
}  // namespace lowbit
