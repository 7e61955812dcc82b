#pragma once
// Elementwise ops of two inputs with broadcasting.

#include "tensor/core/kernel_slot.h"
#include "tensor/core/tensor.h"
#include "tensor/hd/macros.h"

namespace lowbit {

class Variable;

namespace broadcast {

/// y = a + b
struct Add {
  static constexpr bool saves = false;                         ///< the gradients do not need a and b
  static constexpr bool passes(int /*side*/) { return true; }  ///< the gradient of that side is gy itself
  template <class T>
  LOWBIT_HD static T fwd(T a, T b) {
    return a + b;
  }
  template <class T>
  LOWBIT_HD static T grad_a(T gy, T /*a*/, T /*b*/) {
    return gy;
  }
  template <class T>
  LOWBIT_HD static T grad_b(T gy, T /*a*/, T /*b*/) {
    return gy;
  }
};

/// y = a − b
struct Sub {
  static constexpr bool saves = false;
  static constexpr bool passes(int side) { return side == 0; }
  template <class T>
  LOWBIT_HD static T fwd(T a, T b) {
    return a - b;
  }
  template <class T>
  LOWBIT_HD static T grad_a(T gy, T /*a*/, T /*b*/) {
    return gy;
  }
  template <class T>
  LOWBIT_HD static T grad_b(T gy, T /*a*/, T /*b*/) {
    return -gy;
  }
};

/// y = a·b
struct Mul {
  static constexpr bool saves = true;
  static constexpr bool passes(int /*side*/) { return false; }
  template <class T>
  LOWBIT_HD static T fwd(T a, T b) {
    return a * b;
  }
  template <class T>
  LOWBIT_HD static T grad_a(T gy, T /*a*/, T b) {
    return gy * b;
  }
  template <class T>
  LOWBIT_HD static T grad_b(T gy, T a, T /*b*/) {
    return gy * a;
  }
};

/// y = a / b
struct Div {
  static constexpr bool saves = true;
  static constexpr bool passes(int /*side*/) { return false; }
  template <class T>
  LOWBIT_HD static T fwd(T a, T b) {
    return a / b;
  }
  template <class T>
  LOWBIT_HD static T grad_a(T gy, T /*a*/, T b) {
    return gy / b;
  }
  template <class T>
  LOWBIT_HD static T grad_b(T gy, T a, T b) {
    return -gy * a / (b * b);
  }
};

}  // namespace broadcast

// X(Struct, function)
#define LOWBIT_BINARY_LIST(X) \
  X(broadcast::Add, add)      \
  X(broadcast::Sub, sub)      \
  X(broadcast::Mul, mul)      \
  X(broadcast::Div, div)

/// All views have one shape and dtype; a and b are expanded with zero strides, y is packed.
template <class F>
struct BinaryFwdArgs {
  View y, a, b;
};
/// d (packed) = the gradient of operand `side` (0: a, 1: b) before it is summed over broadcast dimensions.
template <class F>
struct BinaryBwdArgs {
  View d, gy, a, b;
  int side;
};
/// What the engines call.
template <class F>
struct BinaryFwd {
  template <class T>
  LOWBIT_HD T operator()(T a, T b) const {
    return F::fwd(a, b);
  }
};
template <class F>
struct BinaryBwd {
  int side;
  template <class T>
  LOWBIT_HD T operator()(T gy, T a, T b) const {
    return side == 0 ? F::grad_a(gy, a, b) : F::grad_b(gy, a, b);
  }
};

#define LOWBIT_DECLARE_BINARY(F, name)            \
  extern KernelSlot<BinaryFwdArgs<F>> name##_fwd; \
  extern KernelSlot<BinaryBwdArgs<F>> name##_bwd; \
  Variable name(const Variable& a, const Variable& b);

/// y = a ∘ b, ∘ one of + − · /.
/// Shapes  a, b broadcast to y: aligned at the last dimension, extents equal or 1
/// Grad    as in the structs above, summed over the dimensions in which the operand was repeated
/// Saves   a and b (shared) for · and /, nothing for + and −
/// Order   sums over repeated dimensions: reduce_to (docs/numerics.md, rules 3 and 4)
/// Source  none
/// Errors  shape: not broadcastable;  dtype, device: operands differ, not floating
LOWBIT_BINARY_LIST(LOWBIT_DECLARE_BINARY)
#undef LOWBIT_DECLARE_BINARY

}  // namespace lowbit
