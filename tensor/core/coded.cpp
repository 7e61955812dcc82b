#include "tensor/core/coded.h"

#include "tensor/core/dequantize.h"
#include "tensor/core/thread_pool.h"

namespace lowbit {
namespace {
void dequantize_cpu(const DequantizeArgs& a, Stream) {
  parallel_for(a.n, 1 << 15, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) a.y[i] = a.value(i);
  });
}
}  // namespace

constinit KernelSlot<DequantizeArgs> dequantize_codes{"dequantize", dequantize_cpu};

Coded Coded::group(int64_t g) const {
  Coded c = *this;
  c.codes = codes.select(-3, g);
  if (scale.ndim() == 2) c.scale = scale.select(0, g);
  if (offset.defined() && offset.ndim() == 2) c.offset = offset.select(0, g);
  return c;
}

Tensor Coded::dequantize() const {
  if (by_groups()) {
    Tensor y = Tensor::empty(codes.shape(), DType::f32, codes.device());
    for (int64_t g = 0; g < codes.size(-3); ++g) {
      Tensor window = y.select(-3, g);
      window.copy_from(group(g).dequantize());
    }
    return y;
  }
  const Tensor q = codes.packed();
  Tensor y = Tensor::empty(q.shape(), DType::f32, q.device());
  DequantizeArgs a{.y = y.data<float>(),
                   .codes = q.view().data,
                   .is_signed = q.dtype() == DType::i8,
                   .scale = scale.data_const<float>(),
                   .offset = offset.defined() ? offset.data_const<float>() : nullptr,
                   .shift = float(shift),
                   .n = q.numel(),
                   .inner = 1,
                   .extent = per_tensor() ? 1 : q.size(scale_axis),
                   .channels = offset.defined() && offset.numel() > 1 ? q.size(-1) : 1};
  for (int d = q.ndim() + scale_axis + 1; !per_tensor() && d < q.ndim(); ++d) a.inner *= q.size(d);
  dequantize_codes(a, q.device());
  return y;
}

}  // namespace lowbit
