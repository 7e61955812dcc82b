// cuDNN of the emulated device; see cudnn.h.

#include <cudnn.h>

#include <cstring>

#include "tensor/hd/half.h"

struct EmulatedMaps {
  int n = 0, c = 0, h = 0, w = 0;
};
struct EmulatedFilter {
  int k = 0, c = 0, h = 0, w = 0;
};
struct EmulatedConvolution {
  int pad = 0, stride = 0, groups = 1;
  cudnnMathType_t math = CUDNN_DEFAULT_MATH;
};

namespace {

enum : int { kRandomOrder, kUsable };  // algorithms
constexpr size_t kWork = 1024;

bool fits(const EmulatedMaps& x, const EmulatedFilter& f, const EmulatedConvolution& c,
          const EmulatedMaps& y) {
  const auto out = [&c](int extent, int kernel) { return (extent + 2 * c.pad - kernel) / c.stride + 1; };
  return x.n > 0 && x.n == y.n && c.stride > 0 && c.groups > 0 && x.c == f.c * c.groups && y.c == f.k &&
         f.k % c.groups == 0 && y.h == out(x.h, f.h) && y.w == out(x.w, f.w);
}

template <class Algorithm>
cudnnStatus_t propose(bool right, const EmulatedConvolution& c, int requested, int* count,
                      cudnnEmulatedPerf<Algorithm>* to) {
  if (!right || requested < 2) return CUDNN_STATUS_BAD_PARAM;
  to[0] = {Algorithm(kRandomOrder), CUDNN_STATUS_SUCCESS, 1, 0, CUDNN_NON_DETERMINISTIC, c.math};
  to[1] = {Algorithm(kUsable), CUDNN_STATUS_SUCCESS, 2, kWork, CUDNN_DETERMINISTIC, c.math};
  *count = 2;
  return CUDNN_STATUS_SUCCESS;
}

struct Pass {
  EmulatedMaps mx, my;
  EmulatedFilter mw;
  EmulatedConvolution conv;

  float read(float v) const {
    return conv.math == CUDNN_FMA_MATH ? v : lowbit::bits_float(lowbit::float_bits(v) & ~0x1fffu);
  }
  /// f(x element, w element, y element) of every product, from the last to the first.
  template <class F>
  void each(F f) const {
    const int per = mw.k / conv.groups;
    for (int n = mx.n - 1; n >= 0; --n)
      for (int i = my.h - 1; i >= 0; --i)
        for (int j = my.w - 1; j >= 0; --j)
          for (int o = mw.k - 1; o >= 0; --o)
            for (int r = mw.h - 1; r >= 0; --r)
              for (int s = mw.w - 1; s >= 0; --s) {
                const int h = i * conv.stride + r - conv.pad, w = j * conv.stride + s - conv.pad;
                if (h < 0 || h >= mx.h || w < 0 || w >= mx.w) continue;
                for (int c = mw.c - 1; c >= 0; --c)
                  f(((int64_t(n) * mx.h + h) * mx.w + w) * mx.c + o / per * mw.c + c,
                    ((int64_t(o) * mw.h + r) * mw.w + s) * mw.c + c,
                    ((int64_t(n) * my.h + i) * my.w + j) * my.c + o);
              }
  }
};

/// Checks a call and starts f, which fills `to` with `count` floats, on the stream.
template <class F>
cudnnStatus_t start(const EmulatedCudnn* h, const Pass& p, int algorithm, const void* work, size_t bytes,
                    const void* alpha, const void* beta, void* to, int64_t count, F f) {
  float a = 0, b = 1;
  std::memcpy(&a, alpha, sizeof a), std::memcpy(&b, beta, sizeof b);
  if (!h || !fits(p.mx, p.mw, p.conv, p.my) || algorithm != kUsable || !work || bytes < kWork || a != 1 ||
      b != 0)
    return CUDNN_STATUS_BAD_PARAM;
  cuda_emulation::launch(dim3(1), dim3(1), 0, h->stream, [=] {
    float* const result = static_cast<float*>(to);
    for (int64_t i = 0; i < count; ++i) result[i] = 0;
    p.each([&](int64_t x, int64_t w, int64_t y) { f(result, x, w, y); });
  });
  return CUDNN_STATUS_SUCCESS;
}

int64_t size(const EmulatedMaps& m) { return int64_t(m.n) * m.c * m.h * m.w; }
const float* floats(const void* p) { return static_cast<const float*>(p); }

}  // namespace

const char* cudnnGetErrorString(cudnnStatus_t s) {
  return s == CUDNN_STATUS_SUCCESS           ? "CUDNN_STATUS_SUCCESS"
         : s == CUDNN_STATUS_BAD_PARAM       ? "CUDNN_STATUS_BAD_PARAM"
         : s == CUDNN_STATUS_NOT_INITIALIZED ? "CUDNN_STATUS_NOT_INITIALIZED"
                                             : "CUDNN_STATUS_NOT_SUPPORTED";
}
size_t cudnnGetVersion() { return CUDNN_VERSION; }
cudnnStatus_t cudnnDestroy(cudnnHandle_t h) { return delete h, CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnCreate(cudnnHandle_t* h) { return *h = new EmulatedCudnn, CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnSetStream(cudnnHandle_t h, cudaStream_t s) { return h->stream = s, CUDNN_STATUS_SUCCESS; }

cudnnStatus_t cudnnCreateTensorDescriptor(cudnnTensorDescriptor_t* d) {
  return *d = new EmulatedMaps, CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetTensor4dDescriptor(cudnnTensorDescriptor_t d, cudnnTensorFormat_t, cudnnDataType_t,
                                         int n, int c, int h, int w) {
  *d = {n, c, h, w};
  return n > 0 && c > 0 && h > 0 && w > 0 ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_BAD_PARAM;
}
cudnnStatus_t cudnnCreateFilterDescriptor(cudnnFilterDescriptor_t* d) {
  return *d = new EmulatedFilter, CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetFilter4dDescriptor(cudnnFilterDescriptor_t d, cudnnDataType_t, cudnnTensorFormat_t,
                                         int k, int c, int h, int w) {
  *d = {k, c, h, w};
  return k > 0 && c > 0 && h > 0 && w > 0 ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_BAD_PARAM;
}
cudnnStatus_t cudnnCreateConvolutionDescriptor(cudnnConvolutionDescriptor_t* d) {
  return *d = new EmulatedConvolution, CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetConvolution2dDescriptor(cudnnConvolutionDescriptor_t d, int pad_h, int pad_w, int u,
                                              int v, int dilation_h, int dilation_w, cudnnConvolutionMode_t,
                                              cudnnDataType_t) {
  if (pad_h != pad_w || u != v || u < 1 || pad_h < 0) return CUDNN_STATUS_BAD_PARAM;
  if (dilation_h != 1 || dilation_w != 1) return CUDNN_STATUS_NOT_SUPPORTED;
  d->pad = pad_h, d->stride = u;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetConvolutionGroupCount(cudnnConvolutionDescriptor_t d, int groups) {
  return d->groups = groups, CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetConvolutionMathType(cudnnConvolutionDescriptor_t d, cudnnMathType_t m) {
  return d->math = m, CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnGetConvolutionForwardAlgorithm_v7(cudnnHandle_t, cudnnTensorDescriptor_t x,
                                                     cudnnFilterDescriptor_t w,
                                                     cudnnConvolutionDescriptor_t c,
                                                     cudnnTensorDescriptor_t y, int requested, int* count,
                                                     cudnnConvolutionFwdAlgoPerf_t* to) {
  return propose(fits(*x, *w, *c, *y), *c, requested, count, to);
}
cudnnStatus_t cudnnGetConvolutionBackwardDataAlgorithm_v7(cudnnHandle_t, cudnnFilterDescriptor_t w,
                                                          cudnnTensorDescriptor_t dy,
                                                          cudnnConvolutionDescriptor_t c,
                                                          cudnnTensorDescriptor_t dx, int requested,
                                                          int* count, cudnnConvolutionBwdDataAlgoPerf_t* to) {
  return propose(fits(*dx, *w, *c, *dy), *c, requested, count, to);
}
cudnnStatus_t cudnnGetConvolutionBackwardFilterAlgorithm_v7(
    cudnnHandle_t, cudnnTensorDescriptor_t x, cudnnTensorDescriptor_t dy, cudnnConvolutionDescriptor_t c,
    cudnnFilterDescriptor_t dw, int requested, int* count, cudnnConvolutionBwdFilterAlgoPerf_t* to) {
  return propose(fits(*x, *dw, *c, *dy), *c, requested, count, to);
}

cudnnStatus_t cudnnConvolutionForward(cudnnHandle_t h, const void* alpha, cudnnTensorDescriptor_t dx,
                                      const void* x, cudnnFilterDescriptor_t dw, const void* w,
                                      cudnnConvolutionDescriptor_t c, cudnnConvolutionFwdAlgo_t algo,
                                      void* work, size_t work_bytes, const void* beta,
                                      cudnnTensorDescriptor_t dy, void* y) {
  const Pass p{*dx, *dy, *dw, *c};
  return start(h, p, algo, work, work_bytes, alpha, beta, y, size(p.my),
               [=](float* to, int64_t i, int64_t j, int64_t k) {
                 to[k] += p.read(floats(x)[i]) * p.read(floats(w)[j]);
               });
}
cudnnStatus_t cudnnConvolutionBackwardData(cudnnHandle_t h, const void* alpha, cudnnFilterDescriptor_t dw,
                                           const void* w, cudnnTensorDescriptor_t dy, const void* y,
                                           cudnnConvolutionDescriptor_t c, cudnnConvolutionBwdDataAlgo_t algo,
                                           void* work, size_t work_bytes, const void* beta,
                                           cudnnTensorDescriptor_t dx, void* x) {
  const Pass p{*dx, *dy, *dw, *c};
  return start(h, p, algo, work, work_bytes, alpha, beta, x, size(p.mx),
               [=](float* to, int64_t i, int64_t j, int64_t k) {
                 to[i] += p.read(floats(y)[k]) * p.read(floats(w)[j]);
               });
}
cudnnStatus_t cudnnConvolutionBackwardFilter(cudnnHandle_t h, const void* alpha, cudnnTensorDescriptor_t dx,
                                             const void* x, cudnnTensorDescriptor_t dy, const void* y,
                                             cudnnConvolutionDescriptor_t c,
                                             cudnnConvolutionBwdFilterAlgo_t algo, void* work,
                                             size_t work_bytes, const void* beta, cudnnFilterDescriptor_t dw,
                                             void* w) {
  const Pass p{*dx, *dy, *dw, *c};
  return start(h, p, algo, work, work_bytes, alpha, beta, w, int64_t(p.mw.k) * p.mw.c * p.mw.h * p.mw.w,
               [=](float* to, int64_t i, int64_t j, int64_t k) {
                 to[j] += p.read(floats(x)[i]) * p.read(floats(y)[k]);
               });
}
