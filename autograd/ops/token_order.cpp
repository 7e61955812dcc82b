#include "autograd/ops/token_order.h"

#include "tensor/core/thread_pool.h"

namespace lowbit {
namespace {

void drawn_cpu(const DrawnOrderArgs& a, Stream) { draw_order(a); }
void rows_cpu(const OrderRowsArgs& a, Stream) {
  parallel_for(a.batch * a.n, 1 << 15, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) order_row(a, r);
  });
}

}  // namespace

constinit KernelSlot<DrawnOrderArgs> drawn_order_kernel{"drawn_order", drawn_cpu};
constinit KernelSlot<OrderRowsArgs> order_rows_kernel{"order_rows", rows_cpu};

Tensor drawn_order(const RngKey& key, int64_t n, Device d) {
  LOWBIT_CHECK(n >= 0, value, "drawn_order", "n must not be negative (got ", n, ")");
  Tensor out = Tensor::empty({n}, DType::i64, d);
  drawn_order_kernel({key, out.data<int64_t>(), n}, d);
  return out;
}

Tensor order_rows(const Tensor& order, int64_t batch, bool inverse) {
  LOWBIT_CHECK(order.dtype() == DType::i64 && order.ndim() == 1 && order.contiguous() && batch > 0, shape,
               "order_rows", "order must be i64 [n] and batch positive (got order=", order.str(),
               ", batch=", batch, ")");
  const int64_t n = order.numel();
  Tensor out = Tensor::empty({batch * n}, DType::i64, order.device());
  if (n > 0)
    order_rows_kernel({order.data_const<int64_t>(), out.data<int64_t>(), batch, n, inverse}, order.device());
  return out;
}

}  // namespace lowbit
