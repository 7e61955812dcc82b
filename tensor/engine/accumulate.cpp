#include "tensor/engine/accumulate.h"

#include "tensor/engine/pointwise.h"

namespace lowbit {
namespace {
void accumulate_cpu(const AccumulateArgs& v, Stream) { cpu::pointwise({v.a, v.a, v.b}, Plus{}); }
}  // namespace

constinit KernelSlot<AccumulateArgs> accumulate{"accumulate", accumulate_cpu};

}  // namespace lowbit
