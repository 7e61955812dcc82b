#pragma once
#include "tensor/core/kernel_slot.h"
#include "tensor/core/tensor.h"
#include "tensor/hd/macros.h"
#include "tensor/hd/philox.h"

namespace lowbit {

class Variable;

/// Four neighbouring elements share one Philox block. The comparison is in float for every dtype, so that the
/// float64 gradient check sees the mask of the float run.
struct DropoutMath {
  template <class T>
  LOWBIT_HD static T apply(T x, uint32_t word, float p, T scale) {
    return uniform_from_bits(word) >= p ? x * scale : T(0);
  }
};

/// y and x packed, one dtype. Backward is the same kernel on gy.
struct DropoutArgs {
  View y, x;
  RngKey key;
  double p;
};
extern KernelSlot<DropoutArgs> dropout_apply;

/// Dropout: y = x·1[u ≥ p] / (1 − p), u uniform in [0, 1).
/// Shapes  x, y of any shape;  0 ≤ p < 1
/// Grad    dx = gy·1[u ≥ p] / (1 − p)
/// Mask    element i draws word i mod 4 of Philox block i/4; p = 0 returns x and draws nothing
/// Saves   the key: the mask is drawn again    Order  none
/// Source  Srivastava et al. 2014
/// Errors  dtype: x is not floating;  value: p outside [0, 1)
Variable dropout(const Variable& x, double p);

}  // namespace lowbit
