#pragma once
#include <cstdint>

#include "tensor/core/generator.h"

namespace lowbit {

enum class Determinism : uint8_t { strict, fast };  ///< strict is the default
/// Gradients of products with one operand of integer codes: float products; the float operand cut into two or
/// three bytes and integer products, whose error is that of 16 and 24 bits; or cut into one to three bf16
/// numbers and products of bf16, in which the codes are exact (docs/performance.md).
enum class BackwardProducts : uint8_t { f32, int8x2, int8x3, bf16, bf16x2, bf16x3 };
enum class MathMode : uint8_t { f32, tf32, bf16 };  ///< operands of float products; accumulation in f32

/// Settings of the current thread of control. Kernels never read it; differentiable functions do.
struct Context {
  Determinism determinism = Determinism::strict;
  MathMode gemm = MathMode::f32;
  bool integer_products = true;  ///< products of coded operands run on integers; false: the float oracle
  BackwardProducts backward = BackwardProducts::int8x3;
  bool library_products = true;  ///< float products and convolutions on CUDA by cuBLASLt and cuDNN
  bool check_finite =
      false;  ///< LOWBIT_CHECK_FINITE=1: every recorded output is checked, the first offender named
  Generator generator{0};  ///< dropout, drop path; reserved in program order
};
Context& context();  ///< thread-local

}  // namespace lowbit
