#include "autograd/ops/argmax.h"

#include "tensor/engine/row.h"

namespace lowbit {
namespace {

constexpr int64_t kMostColumns = 1 << 24;  // indices up to here are exact floats

void argmax_cpu(const ArgmaxArgs& a, Stream) { cpu::rows(a.rows, a.n, ArgmaxRow{a.x, a.y, a.n}); }

}  // namespace

constinit KernelSlot<ArgmaxArgs> argmax_kernel{"argmax", argmax_cpu};

Tensor argmax_rows(const Tensor& x) {
  LOWBIT_CHECK(x.dtype() == DType::f32, dtype, "argmax", "x must be f32 (got ", x.str(), ")");
  LOWBIT_CHECK(x.ndim() == 2 && x.size(1) > 0 && x.size(1) <= kMostColumns, shape, "argmax",
               "x must be [B, C] with 1 to 2^24 columns (got ", x.str(), ")");
  const Tensor p = x.packed();
  Tensor y = Tensor::empty({x.size(0)}, DType::i64, x.device());
  argmax_kernel({p.data_const<float>(), y.data<int64_t>(), x.size(0), x.size(1)}, x.device());
  return y;
}

}  // namespace lowbit
