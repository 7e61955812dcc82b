#pragma once
#include "autograd/ops/drop_path.h"

namespace lowbit {

class Variable;

struct ResidualMath {
  template <class T>
  LOWBIT_HD static T sum(T x, T branch) {
    return x + branch;
  }
  template <class T>
  LOWBIT_HD static T sum(T x, T branch, bool keep, T keep_probability) {
    return sum(x, DropPathMath::apply(branch, keep, keep_probability));
  }
};

/// y, x and branch packed [samples, n], one dtype, but y, or y and x, or all three may be bf16; `drops`:
/// samples are dropped, else the rest is unused.
struct ResidualArgs {
  View y, x, branch;
  int64_t samples, n;
  bool drops;
  RngKey key;
  double keep_probability;
};
extern KernelSlot<ResidualArgs> residual_fwd;

/// A residual sum with stochastic depth: add(x, drop_path(branch, p)) in one pass, bit for bit.
/// y_b = x_b + branch_b·k_b / (1 − p),  k_b as in drop_path
/// Shapes  x, branch, y [B, ...] alike;  0 ≤ p < 1
/// Narrow  where Context::gemm is bf16, y is rounded to bf16, once, and stored so; x and branch may be narrow
/// Grad    straight through the rounding: dx = gy (shared);  dbranch = gy where p = 0, else
///         gy_b·k_b / (1 − p), by the kernel of drop_path
/// Mask    that of drop_path: sample b draws Philox word b; p = 0 draws nothing
/// Saves   the key    Order  none
/// Source  He et al. 2015; Huang et al. 2016; timm drop_path
/// Errors  shape: x and branch differ, no dimension;  dtype, device: operands differ;  value: p
Variable residual(const Variable& x, const Variable& branch, double p);

}  // namespace lowbit
