#pragma once
// Integer codes of a quantized tensor. What a fake-quantizer hands to a product instead of floats.

#include "tensor/core/tensor.h"

namespace lowbit {

/// value[i] = scale · (codes[i] + shift) + offset      (docs/performance.md: a_t, q, c, b_k)
///   codes   u8 or i8, any strides, the logical shape
///   scale   f32, one value per tensor ([1]) or [n] along `scale_axis`; [G, n] where each of the G indices of
///           dimension -3 (heads) has its own
///   offset  f32, undefined (0), [1], or [C] along the last dimension; [G, C] likewise
///   shift   integer, or half-integer for quantizers without a zero level (StatsQ)
///   lo, hi  every code lies in [lo, hi]; kernels choose exact accumulation from it
struct Coded {
  static constexpr int kPerTensor = -100;
  Tensor codes, scale, offset;
  double shift = 0;
  int scale_axis = kPerTensor;  ///< negative, counted from the end
  int lo = 0, hi = 255;

  bool defined() const { return codes.defined(); }
  const Shape& shape() const { return codes.shape(); }
  bool per_tensor() const { return scale_axis == kPerTensor; }
  /// Some heads have a scale or an offset of their own.
  bool by_groups() const { return scale.ndim() == 2 || (offset.defined() && offset.ndim() == 2); }
  Coded group(int64_t g) const;  ///< without dimension -3, at its index g; the scale must not run along it
  size_t bytes() const { return codes.bytes(); }
  Tensor dequantize() const;  ///< f32, packed: fl(fl(scale · (code + shift)) + offset)
};

}  // namespace lowbit
