#include "autograd/ops/conv2d.h"

#include "autograd/ops/launch.cuh"
#include "tensor/engine/pointwise.cuh"

namespace lowbit {
namespace {

/// One element of the columns.
template <class T>
struct ColumnElement {
  ConvGeometry g;
  const T* x;
  T pad;
  __device__ T operator()(int64_t i) const {
    const int64_t d = i % g.depth, t = i / g.depth % g.taps(), group = i / (g.depth * g.taps()) % g.groups;
    const int64_t from = g.source(i / (g.taps() * g.channels()), t);
    return from < 0 ? pad : x[from * g.channels() + group * g.depth + d];
  }
};

struct PixelElement {
  ConvGeometry g;
  const float* columns;
  __device__ float operator()(int64_t i) const {
    const int64_t c = i % g.channels(), group = c / g.depth, d = c % g.depth;
    float sum = 0;
    for (int64_t t = 0; t < g.taps(); ++t) {
      const int64_t pixel = g.target(i / g.channels(), t);
      if (pixel >= 0) sum += columns[pixel * g.taps() * g.channels() + (group * g.taps() + t) * g.depth + d];
    }
    return sum;
  }
};

template <class T>
void columns(const Im2colArgs& a, Stream stream) {
  cuda::pointwise_typed<1, true, T>({a.columns}, ColumnElement<T>{a.g, a.x.as<T>(), T(a.pad)}, stream);
}

void im2col_cuda(const Im2colArgs& a, Stream stream) {
  if (a.x.dtype == DType::u8) return columns<uint8_t>(a, stream);
  if (a.x.dtype == DType::i8) return columns<int8_t>(a, stream);
  cuda::require_f32("conv2d.im2col", a.x);
  columns<float>(a, stream);
}

void col2im_cuda(const Col2imArgs& a, Stream stream) {
  cuda::require_f32("conv2d.col2im", a.dx);
  cuda::pointwise_indexed({a.dx}, PixelElement{a.g, a.dcolumns.as<float>()}, stream);
}

const CudaKernel<Im2colArgs> im2col_kernel(im2col, im2col_cuda);
const CudaKernel<Col2imArgs> col2im_kernel(col2im, col2im_cuda);

}  // namespace
}  // namespace lowbit
