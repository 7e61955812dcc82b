#pragma once
// StatsQ: weight quantization whose scale is a statistic of the weights, without a zero level.
//
// Shapes   w [..., G, K], two to four dimensions; one scale per index of dimension −2: the output row of a
//          matrix
// Forward  a = 2·mean |w| of the group,  n = 2^(bits−1),  l = rint(clamp(w/a, −1, 1 − 1e-6)·n − ½),
//          y = a·(l + ½)/n. y carries the codes l with shift ½ where Context::integer_products allows it; its
//          floats have the same bits. A group of zeros: level 0 of scale 0.
// Grad     dw = gy for every element, clipped or not; nothing through a
// Saves    nothing     Order  mean_abs (quant/ops/mean_abs.h)
// Errors   dtype, shape, value: bits; numeric: values of w that are not finite
// Source   Liu et al. 2023 (OFQ), statsq.py; docs/methods/ofq.md

#include "quant/ops/mean_abs.h"
#include "tensor/core/tensor.h"

namespace lowbit {

class Variable;

/// bits 1 … 8; `name`: whom an error blames. `scale`, where given, receives a/n of every group.
Variable statsq(const Variable& w, int bits, std::string_view name = "statsq", Tensor* scale = nullptr);

/// l as above; step = a/n, exactly, n being a power of two.
template <class T>
struct StatsqLevel {
  T n;
  LOWBIT_HD T operator()(T w, T step) const {
    const T a = step * n, u = a > T(0) ? w / a : T(0), hi = T(1) - T(1e-6);
    const T low = u > T(-1) ? u : T(-1), c = low < hi ? low : hi;
    return math::rint(c * n - T(0.5));
  }
};
template <class T>
struct StatsqValue {
  T n;
  LOWBIT_HD T operator()(T w, T step) const { return step * (StatsqLevel<T>{n}(w, step) + T(0.5)); }
};

/// One shape, any strides: y f32, f64 (values) or i8 (levels).
struct StatsqArgs {
  View y, w, step;
  int n;
};
extern KernelSlot<StatsqArgs> statsq_fwd;

}  // namespace lowbit
