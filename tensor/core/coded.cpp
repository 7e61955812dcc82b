#include "tensor/core/coded.h"

#include "tensor/core/thread_pool.h"

namespace lowbit {

Tensor Coded::dequantize() const {
  const Tensor q = codes.packed();
  Tensor y = Tensor::empty(q.shape());
  const int64_t n = q.numel(), last = q.ndim() ? q.size(-1) : 1;
  int64_t inner = 1, extent = 1;  // scale index of element i: (i / inner) % extent
  if (!per_tensor()) {
    extent = q.size(scale_axis);
    for (int d = q.ndim() + scale_axis + 1; d < q.ndim(); ++d) inner *= q.size(d);
  }
  const float* s = scale.data<float>();
  const float* b = offset.defined() ? offset.data_const<float>() : nullptr;
  const bool per_channel = b && offset.numel() > 1;
  float* out = y.data<float>();
  const float c = float(shift);
  const bool is_unsigned = q.dtype() == DType::u8;
  const void* raw = q.view().data;
  parallel_for(n, 1 << 15, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float code = is_unsigned ? float(static_cast<const uint8_t*>(raw)[i])
                                     : float(static_cast<const int8_t*>(raw)[i]);
      const float v = s[extent == 1 ? 0 : (i / inner) % extent] * (code + c);
      out[i] = b ? v + b[per_channel ? i % last : 0] : v;
    }
  });
  return y;
}

}  // namespace lowbit
