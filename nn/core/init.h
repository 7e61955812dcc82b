#pragma once
#include "tensor/core/generator.h"
#include "tensor/core/tensor.h"

namespace lowbit::init {

/// Normal(0, std) redrawn until inside ±2 (timm's trunc_normal_ with a=-2, b=2 in absolute units; for std
/// 0.02 the cut is far away). Draws come from `g`.
Tensor trunc_normal(const Shape& s, double std, Generator& g);
/// U(-bound, bound).
Tensor uniform(const Shape& s, double bound, Generator& g);

}  // namespace lowbit::init
