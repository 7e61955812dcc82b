#include "quant/quantizer/binary_quantizer.h"

#include <cmath>

#include "autograd/core/variable.h"
#include "quant/ops/binary.h"

namespace lowbit {

BinaryQuantizer::BinaryQuantizer(const QuantSpec& spec, int64_t heads) : Quantizer(spec), heads_(heads) {
  LOWBIT_CHECK(spec.bits == 1, usage, "quantizer", "a binary quantizer has 1 bit (got ", spec.bits, ")");
}

GroupLayout BinaryQuantizer::layout(const Shape& x) const {
  GroupLayout l;
  const int64_t n = x.numel();
  if (n == 0 || spec().granularity == Granularity::tensor) {
    l.inner = n;
    return l;
  }
  LOWBIT_CHECK(x.ndim() > 1, shape, label(), "x must have a batch dimension (got ", x.str(), ")");
  l.groups = x[0];
  if (spec().granularity == Granularity::column) {
    const int64_t heads = x.ndim() == 3 ? heads_ : 1;
    LOWBIT_CHECK(x[-1] % heads == 0, shape, label(), "heads must divide the last dimension (got ", heads,
                 " and ", x.str(), ")");
    l.columns = x[-1] / heads;
  }
  l.inner = n / l.scales();
  return l;
}

Variable BinaryQuantizer::fake_quant(const Variable& x) {
  return binarize(x, layout(x.shape()), label(), &last_scale_);
}

void BinaryQuantizer::set_scale(const Tensor&) {
  fail(ErrorKind::usage, label(), "the scale of a binary quantizer is computed from each input");
}

double BinaryQuantizer::clipped_share(const Tensor& x) const {
  int64_t outside = 0;
  for (float v : x.to_vector<float>()) outside += std::fabs(v) > 1;
  return x.numel() ? double(outside) / double(x.numel()) : 0;
}

}  // namespace lowbit
