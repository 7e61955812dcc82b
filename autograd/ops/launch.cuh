#pragma once
// Shared by the launchers of ops.

#include "tensor/core/kernel_slot.h"
#include "tensor/core/tensor.h"

namespace lowbit::cuda {

/// Row and reduction kernels exist for f32 only; f64 is for gradient checks on the CPU.
inline void require_f32(const char* op, const View& v) {
  LOWBIT_CHECK(v.dtype == DType::f32, dtype, op, "dtype must be f32 on cuda (got ", dtype_name(v.dtype), ")");
}

}  // namespace lowbit::cuda
