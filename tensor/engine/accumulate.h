#pragma once
#include "tensor/core/kernel_slot.h"
#include "tensor/core/tensor.h"
#include "tensor/hd/macros.h"

namespace lowbit {

/// a += b over views of one shape and dtype: the sum of gradients.
struct AccumulateArgs {
  View a, b;
};
extern KernelSlot<AccumulateArgs> accumulate;

struct Plus {
  template <class T>
  LOWBIT_HD T operator()(T x, T y) const {
    return x + y;
  }
};

}  // namespace lowbit
