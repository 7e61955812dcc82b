#include "quant/ops/oscillation_step.h"

#include "tensor/engine/row.h"

namespace lowbit {
namespace {

void step_cpu(const OscillationArgs& a, Stream) {
  const int64_t chunks = ceil_div(a.n, kChunk);
  dispatch_oscillation(a, [&](const auto& chunk) { cpu::rows(chunks, kChunk, chunk); });
  cpu::rows(1, chunks, OscillationTotals{a});
}

}  // namespace

constinit KernelSlot<OscillationArgs> oscillation_step{"oscillation.step", step_cpu};

}  // namespace lowbit
