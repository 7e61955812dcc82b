#pragma once
// The checks every op makes of its operands, in one wording. Included by the .cpp files of ops only.

#include "autograd/core/node.h"

namespace lowbit {

/// "gelu: x must be f32 or f64 (got x=[2, 3] i64 cpu)"
inline void check_float(const char* op, const char* name, const Variable& v) {
  LOWBIT_CHECK(v.dtype() == DType::f32 || v.dtype() == DType::f64, dtype, op, name,
               " must be f32 or f64 (got ", name, "=", v.str(), ")");
}

/// Second operand: same dtype and device as the first.
inline void check_same_kind(const char* op, const char* a_name, const Variable& a, const char* b_name,
                            const Variable& b) {
  LOWBIT_CHECK(a.device() == b.device(), device, op, "operands must share a device (got ", a_name, " on ",
               a.device().str(), ", ", b_name, " on ", b.device().str(), "); call to()");
  LOWBIT_CHECK(a.dtype() == b.dtype(), dtype, op, "operands must share a dtype (got ", a_name, "=", a.str(),
               ", ", b_name, "=", b.str(), ")");
}

inline void check_ids(const char* op, const char* name, const Tensor& ids) {
  LOWBIT_CHECK(ids.dtype() == DType::i64, dtype, op, name, " must be i64 (got ", name, "=", ids.str(), ")");
}

/// Memory for the gradient of input `i`: that of `value` where it was made for this call alone (elementwise
/// kernels may write over what they read), else new.
inline Tensor gradient_over(const Tensor& value, const GradSink& gx, int i) {
  return value.defined() && value.storage().use_count() == 1 ? value : gx.alloc(i);
}

}  // namespace lowbit
