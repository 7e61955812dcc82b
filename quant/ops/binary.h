#pragma once
// 1-bit quantization by sign, scaled by the mean magnitude.
//
// Shapes   x any shape, seen as [outer, groups, inner, columns] (GroupLayout); y like x
// Forward  y = s·sign(x), s = mean |x| of the element's group, sign(0) = 0. With one scale for the tensor, or
//          one per sample, y carries the codes −1, 0, 1 where Context::integer_products allows it; its floats
//          are the same.
// Grad     dx = gy where |x| ≤ 1, else 0; nothing through s
// Saves    x (shared with its producer, or made again by it)     Order  mean_abs (quant/ops/mean_abs.h)
// Errors   dtype; numeric: values of x that are not finite
// Source   VVTQ, quantization/binary_layer.py; docs/methods/vvtq.md

#include "quant/ops/mean_abs.h"
#include "tensor/core/tensor.h"

namespace lowbit {

class Variable;

/// `name`: whom an error blames. `scale`, where given, receives s of every group.
Variable binarize(const Variable& x, const GroupLayout& l, std::string_view name = "binarize",
                  Tensor* scale = nullptr);

namespace binary {

struct Sign {
  template <class T>
  LOWBIT_HD T operator()(T x) const {
    return (x > T(0) ? T(1) : T(0)) - (x < T(0) ? T(1) : T(0));
  }
};
struct Forward {
  template <class T>
  LOWBIT_HD T operator()(T x, T s) const {
    return s * Sign{}(x);
  }
};
struct Backward {
  template <class T>
  LOWBIT_HD T operator()(T gy, T x) const {
    return math::abs(x) <= T(1) ? gy : T(0);
  }
};

/// Every value beyond all levels at every scale on its side of 0, and still finite.
struct FarSign {
  template <class T>
  LOWBIT_HD T operator()(T x) const {
    constexpr T far = T(0x1p100f);
    return x > T(0) ? far : (x < T(0) ? -far : x);
  }
};

}  // namespace binary

/// All of one shape, any strides. y f32 or f64: s·sign(x); i8: sign(x), s unused.
struct BinarizeFwdArgs {
  View y, x, s;
};
struct BinarizeBwdArgs {
  View dx, gy, x;
};
/// y = FarSign(x), for a quantizer of one signed bit that uses the operation of more bits: every element is
/// clipped, so that y = ±s and nothing but the scale receives a gradient. One shape.
struct FarSignArgs {
  View y, x;
};
extern KernelSlot<BinarizeFwdArgs> binary_fwd;
extern KernelSlot<FarSignArgs> far_sign;
extern KernelSlot<BinarizeBwdArgs> binary_bwd;

}  // namespace lowbit
