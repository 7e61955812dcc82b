#include "autograd/ops/windows.h"

#include "autograd/ops/launch.cuh"
#include "tensor/engine/pointwise.cuh"

namespace lowbit {
namespace {

template <class X>
struct WindowElement {
  WindowArgs a;
  const X* x;
  __device__ float operator()(int64_t i) const {
    const int64_t from = a.source(i / a.n);
    return from < 0 ? 0.f : float(x[from * a.n + i % a.n]);
  }
};

void move_cuda(const WindowArgs& a, Stream stream) {
  if (a.x.dtype == DType::bf16)
    return cuda::pointwise_indexed({a.y}, WindowElement<bf16>{a, a.x.as<bf16>()}, stream);
  cuda::require_f32("window_move", a.x);
  cuda::pointwise_indexed({a.y}, WindowElement<float>{a, a.x.as<float>()}, stream);
}

const CudaKernel<WindowArgs> kernel(window_move, move_cuda);

}  // namespace
}  // namespace lowbit
