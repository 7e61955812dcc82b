#pragma once
// Statistics of whole tensors that initialise and scale quantizers. Sums follow rule 3 of docs/numerics.md on
// the packed order, in float32; results do not depend on threads.

#include <string_view>
#include <vector>

#include "quant/ops/lsq.h"
#include "tensor/core/tensor.h"

namespace lowbit {

float sum_abs(const Tensor& x);

struct Moments {
  double mean = 0, deviation = 0;  ///< population standard deviation
};
Moments moments(const Tensor& x);

/// Smallest and largest value of each group; a group is `extent / groups` neighbouring indices of `axis`
/// (negative), or everything for Coded::kPerTensor.
struct Extrema {
  std::vector<float> lo, hi;
};
Extrema extrema(const Tensor& x, int axis = Coded::kPerTensor, int64_t groups = 1);

/// Least-squares scale for given levels, by alternating rounding and regression (docs/methods/vvtq.md).
struct ScaleFit {
  float scale = 0, offset = 0;
  int iterations = 0;
};
/// a = (x·q)/(q·q) with q = rint(clamp(x/a, lo, hi)) until a changes by less than 1e-5. All-zero x: scale 0.
/// Errors  numeric: a scale that is not finite, e.g. only negative values and lo = 0
ScaleFit fit_scale(const Tensor& x, Levels levels, std::string_view name);
/// The same with an offset, which starts at min(x).
ScaleFit fit_scale_and_offset(const Tensor& x, Levels levels, std::string_view name);

}  // namespace lowbit
