#include "quant/ops/oscillation_step.h"
#include "tensor/engine/row.cuh"

namespace lowbit {
namespace {

void step_cuda(const OscillationArgs& a, Stream stream) {
  const int64_t chunks = ceil_div(a.n, kChunk);
  dispatch_oscillation(a, [&](const auto& chunk) { cuda::rows(chunks, kChunk, chunk, stream); });
  cuda::rows(1, chunks, OscillationTotals{a}, stream);
}

const CudaKernel<OscillationArgs> step(oscillation_step, step_cuda);

}  // namespace
}  // namespace lowbit
