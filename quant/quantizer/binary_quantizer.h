#pragma once
#include "quant/ops/mean_abs.h"
#include "quant/quantizer/quantizer.h"

namespace lowbit {

/// 1-bit weights and activations: s·sign(x), s = mean |x| of each input (quant/ops/binary.h). No state:
/// nothing is learned or calibrated.   Granularity  tensor, sample, column
class BinaryQuantizer final : public Quantizer {
 public:
  /// heads: of `column`, for inputs [B, N, heads·D]; inputs [B, H, N, D] need none.
  explicit BinaryQuantizer(const QuantSpec& spec, int64_t heads = 1);
  Variable fake_quant(const Variable& x) override;
  bool initialised() const override { return true; }
  Tensor scale() const override { return last_scale_; }  ///< of the last input; 0 before
  void set_scale(const Tensor& s) override;
  int64_t stored_values() const override { return spec().is_weight ? 1 : 0; }
  double clipped_share(const Tensor& x) const override;  ///< |x| > 1: no gradient

 private:
  GroupLayout layout(const Shape& x) const;
  int64_t heads_;
  Tensor last_scale_ = Tensor::zeros({1});
};

}  // namespace lowbit
