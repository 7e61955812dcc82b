#pragma once
#include "autograd/core/variable.h"
#include "tensor/core/context.h"

namespace lowbit {

/// Whether an op that rounds its result where Context::gemm is bf16 does so for operands like x.
inline bool stores_narrow(const Variable& x) {
  return context().gemm == MathMode::bf16 && x.dtype() == DType::f32;
}

/// Where Context::gemm is bf16: x rounded half to even to bf16 and stored so; else, or where x is stored so
/// already, x itself. For activations that are kept for backward.
/// Shapes  x, y of any shape
/// Grad    straight through: dx = gy (shared)
/// Saves   nothing    Order  none
/// Source  none
/// Errors  dtype: x is not floating
Variable narrowed(const Variable& x);

}  // namespace lowbit
