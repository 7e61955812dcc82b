#pragma once
#include "tensor/core/kernel_slot.h"
#include "tensor/core/tensor.h"
#include "tensor/hd/macros.h"
#include "tensor/hd/math.h"
#include "tensor/hd/philox.h"

namespace lowbit {

class Variable;

struct DropPathMath {
  /// 1 or 0. In float for every dtype: one mask for a run and its float64 gradient check.
  LOWBIT_HD static bool keep(const RngKey& key, int64_t sample, float keep_probability) {
    return math::floor(keep_probability + philox_uniform(key, uint64_t(sample))) > 0;
  }
  template <class T>
  LOWBIT_HD static T apply(T x, bool keep, T keep_probability) {
    return keep ? x / keep_probability : T(0);
  }
};

/// y and x packed [samples, n], one dtype. Backward is the same kernel on gy.
struct DropPathArgs {
  View y, x;
  int64_t samples, n;
  RngKey key;
  double keep_probability;
};
extern KernelSlot<DropPathArgs> drop_path_apply;

/// Stochastic depth per sample: y_b = x_b·k_b / (1 − p),  k_b = floor(1 − p + u_b), u_b uniform in [0, 1).
/// Shapes  x, y [B, ...];  0 ≤ p < 1
/// Grad    dx_b = gy_b·k_b / (1 − p)
/// Mask    sample b draws Philox word b; p = 0 returns x and draws nothing
/// Saves   the key: the mask is drawn again    Order  none
/// Source  Huang et al. 2016; timm drop_path (divides by 1 − p, as here)
/// Errors  dtype: x is not floating;  shape: no dimension;  value: p outside [0, 1)
Variable drop_path(const Variable& x, double p);

}  // namespace lowbit
