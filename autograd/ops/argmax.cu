#include "autograd/ops/argmax.h"

#include "tensor/engine/row.cuh"

namespace lowbit {
namespace {

void argmax_cuda(const ArgmaxArgs& a, Stream stream) {
  cuda::rows(a.rows, a.n, ArgmaxRow{a.x, a.y, a.n}, stream);
}

const CudaKernel<ArgmaxArgs> registered(argmax_kernel, argmax_cuda);

}  // namespace
}  // namespace lowbit
