#pragma once
#include <cstdint>

#include "tensor/core/generator.h"

namespace lowbit {

enum class Determinism : uint8_t { strict, fast };  ///< strict is the default
/// Gradients of products with one operand of integer codes: float products, or the float operand cut into
/// two or three bytes and integer products, whose error is that of 16 and 24 bits (docs/performance.md).
enum class BackwardProducts : uint8_t { f32, int8x2, int8x3 };
enum class MathMode : uint8_t { f32, tf32, bf16 };  ///< GEMM inputs only; accumulation in f32

/// Settings of the current thread of control. Kernels never read it; differentiable functions do.
struct Context {
  Determinism determinism = Determinism::strict;
  MathMode gemm = MathMode::f32;
  bool integer_products = true;  ///< products of coded operands run on integers; false: the float oracle
  BackwardProducts backward = BackwardProducts::int8x3;
  bool check_finite =
      false;  ///< LOWBIT_CHECK_FINITE=1: every recorded output is checked, the first offender named
  Generator generator{0};  ///< dropout, drop path; reserved in program order
};
Context& context();  ///< thread-local

}  // namespace lowbit
