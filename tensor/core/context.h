#pragma once
#include <cstdint>

#include "tensor/core/generator.h"

namespace lowbit {

enum class Determinism : uint8_t { strict, fast };  ///< strict is the default
enum class MathMode : uint8_t { f32, tf32, bf16 };  ///< GEMM inputs only; accumulation in f32

/// Settings of the current thread of control. Kernels never read it; differentiable functions do.
struct Context {
  Determinism determinism = Determinism::strict;
  MathMode gemm = MathMode::f32;
  bool integer_products = true;  ///< products of coded operands run on integers; false: the float oracle
  bool check_finite =
      false;  ///< LOWBIT_CHECK_FINITE=1: every recorded output is checked, the first offender named
  Generator generator{0};  ///< dropout, drop path; reserved in program order
};
Context& context();  ///< thread-local

}  // namespace lowbit
