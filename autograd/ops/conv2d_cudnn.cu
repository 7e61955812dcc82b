// Convolutions of floats by cuDNN (conv2d.h, ConvLibrary).

#include <cudnn.h>

#include <array>
#include <map>
#include <mutex>

#include "autograd/ops/conv2d.h"
#include "tensor/core/cuda_runtime.cuh"

namespace lowbit {
namespace {

constexpr size_t kMaxWork = size_t(256) << 20;

void check(cudnnStatus_t s) {
  if (s != CUDNN_STATUS_SUCCESS) fail(ErrorKind::cuda, "conv2d", str_cat("cuDNN: ", cudnnGetErrorString(s)));
}

using Key = std::array<int64_t, 11>;
Key key_of(const ConvArgs& a) {
  const ConvGeometry& g = a.g;
  return {int64_t(a.pass), a.maps,   a.outputs, g.height,  g.width, g.groups,
          g.depth,         g.kernel, g.stride,  g.padding, a.tf32};
}

/// Descriptors and the algorithm of a form; `found` is false where the library has none that is
/// deterministic.
struct Plan {
  cudnnTensorDescriptor_t x = nullptr, y = nullptr;
  cudnnFilterDescriptor_t w = nullptr;
  cudnnConvolutionDescriptor_t conv = nullptr;
  int algorithm = 0;
  size_t work = 0;
  bool found = false;
};

cudnnTensorDescriptor_t maps(int64_t n, int64_t height, int64_t width, int64_t channels) {
  cudnnTensorDescriptor_t d = nullptr;
  check(cudnnCreateTensorDescriptor(&d));
  check(cudnnSetTensor4dDescriptor(d, CUDNN_TENSOR_NHWC, CUDNN_DATA_FLOAT, int(n), int(channels), int(height),
                                   int(width)));
  return d;
}

/// The first of the library's proposals, which are sorted by expected time, that we may use.
template <class Perf, class Ask>
void choose(Plan& p, bool tf32, Ask ask) {
  std::array<Perf, 8> proposals{};
  int count = 0;
  const cudnnStatus_t s = ask(int(proposals.size()), &count, proposals.data());
  if (s != CUDNN_STATUS_SUCCESS) return;
  for (int i = 0; i < count; ++i) {
    const Perf& f = proposals[size_t(i)];
    if (f.status != CUDNN_STATUS_SUCCESS || f.determinism != CUDNN_DETERMINISTIC || f.memory > kMaxWork ||
        (!tf32 && f.mathType != CUDNN_FMA_MATH))
      continue;
    check(cudnnSetConvolutionMathType(p.conv, f.mathType));
    p.algorithm = int(f.algo), p.work = f.memory, p.found = true;
    return;
  }
}

Plan make_plan(cudnnHandle_t handle, const ConvArgs& a) {
  const ConvGeometry& g = a.g;
  Plan p;
  p.x = maps(a.maps, g.height, g.width, g.channels());
  p.y = maps(a.maps, g.out(g.height), g.out(g.width), a.outputs);
  check(cudnnCreateFilterDescriptor(&p.w));
  check(cudnnSetFilter4dDescriptor(p.w, CUDNN_DATA_FLOAT, CUDNN_TENSOR_NHWC, int(a.outputs), int(g.depth),
                                   int(g.kernel), int(g.kernel)));
  check(cudnnCreateConvolutionDescriptor(&p.conv));
  const int pad = int(g.padding), stride = int(g.stride);
  check(cudnnSetConvolution2dDescriptor(p.conv, pad, pad, stride, stride, 1, 1, CUDNN_CROSS_CORRELATION,
                                        CUDNN_DATA_FLOAT));
  check(cudnnSetConvolutionGroupCount(p.conv, int(g.groups)));
  check(cudnnSetConvolutionMathType(p.conv, a.tf32 ? CUDNN_DEFAULT_MATH : CUDNN_FMA_MATH));
  if (a.pass == ConvPass::forward)
    choose<cudnnConvolutionFwdAlgoPerf_t>(p, a.tf32, [&](int n, int* count, auto* to) {
      return cudnnGetConvolutionForwardAlgorithm_v7(handle, p.x, p.w, p.conv, p.y, n, count, to);
    });
  else if (a.pass == ConvPass::data_gradient)
    choose<cudnnConvolutionBwdDataAlgoPerf_t>(p, a.tf32, [&](int n, int* count, auto* to) {
      return cudnnGetConvolutionBackwardDataAlgorithm_v7(handle, p.w, p.y, p.conv, p.x, n, count, to);
    });
  else
    choose<cudnnConvolutionBwdFilterAlgoPerf_t>(p, a.tf32, [&](int n, int* count, auto* to) {
      return cudnnGetConvolutionBackwardFilterAlgorithm_v7(handle, p.x, p.y, p.conv, p.w, n, count, to);
    });
  return p;
}

/// The library on one device; plans live as long as the program.
struct Library {
  explicit Library(int device) {
    cuda::DeviceScope scope(device);
    check(cudnnCreate(&handle));
  }
  const Plan& plan(const ConvArgs& a) {
    const Key key = key_of(a);
    const auto at = plans.find(key);
    return at != plans.end() ? at->second : plans.emplace(key, make_plan(handle, a)).first->second;
  }
  cudnnHandle_t handle = nullptr;
  std::map<Key, Plan> plans;
};

std::mutex mutex;

Library& library(int device) {
  static auto& all = *new std::map<int, Library>;
  return all.try_emplace(device, device).first->second;
}

bool plan(const ConvArgs& a, Device d, size_t& work_bytes) {
  std::lock_guard lock(mutex);
  const Plan& p = library(d.index).plan(a);
  work_bytes = p.work;
  return p.found;
}

void run(const ConvArgs& a, Stream stream) {
  std::lock_guard lock(mutex);
  Library& lib = library(stream.device.index);
  const Plan& p = lib.plan(a);
  const float one = 1, zero = 0;
  cuda::account("conv2d", stream);
  check(cudnnSetStream(lib.handle, cuda::handle(stream)));
  if (a.pass == ConvPass::forward)
    check(cudnnConvolutionForward(lib.handle, &one, p.x, a.x, p.w, a.w, p.conv,
                                  cudnnConvolutionFwdAlgo_t(p.algorithm), a.work, p.work, &zero, p.y, a.y));
  else if (a.pass == ConvPass::data_gradient)
    check(cudnnConvolutionBackwardData(lib.handle, &one, p.w, a.w, p.y, a.y, p.conv,
                                       cudnnConvolutionBwdDataAlgo_t(p.algorithm), a.work, p.work, &zero, p.x,
                                       a.x));
  else
    check(cudnnConvolutionBackwardFilter(lib.handle, &one, p.x, a.x, p.y, a.y, p.conv,
                                         cudnnConvolutionBwdFilterAlgo_t(p.algorithm), a.work, p.work, &zero,
                                         p.w, a.w));
}

constexpr ConvLibrary cudnn{plan, run};
[[maybe_unused]] const bool registered = (set_conv_library(&cudnn), true);

}  // namespace
}  // namespace lowbit
