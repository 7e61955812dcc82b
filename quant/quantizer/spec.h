#pragma once
#include "quant/ops/lsq.h"

namespace lowbit {

/// What shares a scale. sample: a sample of the batch; column: a sample and a column of the last dimension,
/// of a head where heads lie side by side in it.
enum class Granularity : uint8_t { tensor, channel, group, token, sample, column };

/// What a quantizer is, apart from how it finds its scale.
struct QuantSpec {
  int bits = 8;
  bool is_signed = true;
  bool symmetric = true;  ///< false: an offset or a zero point
  bool is_weight = false;
  Granularity granularity = Granularity::tensor;
  int axis = Coded::kPerTensor;  ///< negative; of the scales when granularity is not `tensor`
  int64_t groups = 1;            ///< Granularity::group: how many along the axis
  Levels levels() const { return Levels::of(bits, is_signed); }
};

}  // namespace lowbit
