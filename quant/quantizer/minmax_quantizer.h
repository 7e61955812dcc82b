#pragma once
// Post-training quantization by the observed range: nothing is trained, gradients pass to the input.

#include "quant/observer/statistics.h"
#include "quant/quantizer/host_copy.h"
#include "quant/quantizer/quantizer.h"

namespace lowbit {

/// Symmetric: a = max|x| / Qp. Otherwise a = (hi − lo) / (2^bits − 1) for the range widened to hold 0, and
/// the integer zero point z = rint(−lo / a): y = a·(clamp(rint(x/a) + z, 0, 2^bits − 1) − z), which keeps 0
/// exact. Granularity tensor, or channel: one scale per output channel, the first dimension of a weight.
/// State: scale [groups], zero_point [groups] (0 in scale: not calibrated yet).
/// Life: observe (ranges grow over the batches) → fixed; fixed without observation takes its first input.
/// Errors  numeric, named after the slot: ranges that are not finite; usage: the state `learned`
class MinMaxQuantizer final : public Quantizer {
 public:
  explicit MinMaxQuantizer(const QuantSpec& spec);
  Variable fake_quant(const Variable& x) override;
  void observe(const Tensor& x) override;
  bool initialised() const override;
  Tensor scale() const override { return scale_; }
  void set_scale(const Tensor& s) override;
  double clipped_share(const Tensor& x) const override;

 protected:
  void on_state(QuantState from, QuantState to) override;

 private:
  void calibrate();
  LsqSettings settings() const;
  Tensor& scale_;
  Tensor& zero_point_;
  mutable HostCopy known_scale_, known_zero_;
  Extrema range_;  ///< empty until observed
};

}  // namespace lowbit
