#pragma once
// The quantizers of OFQ: LSQ with one scale per position and learned shifts; StatsQ for weights.

#include <string>

#include "quant/ops/mean_abs.h"
#include "quant/quantizer/host_copy.h"
#include "quant/quantizer/quantizer.h"

namespace lowbit {

struct OfqConfig {
  /// bits 1 … 8; one scale per index of `axis`, `groups` of them, or one for the tensor. One signed bit has
  /// the levels −1 and 1.
  QuantSpec spec;
  std::string name = "";    ///< of the scale: state "<name>.s"
  std::string before = "";  ///< learned shift added before quantizing: state "<before>.bias"; "": none
  std::string after = "";   ///< the same for after
  /// Last dimensions of x that the shifts span, stored flat: [C]; [H, W] of an image; [heads, C] for x [B,
  /// heads, tokens, C], whose scales are one per token and head, heads inside.
  Shape shift = {};
  bool published_scale = false;  ///< LsqSettings::published_scale
  bool image = false;            ///< unsigned until a value below −1e-5 is seen: state "<name>.signed"
};

/// y = Q(x + before) + after,  Q(v) = s·rint(clamp(v/s, lo, hi)) with the group's scale s.
/// The scale is max(s, 1e-5), a floor that the gradient does not see; the mask is 1 on the edges; the
/// gradient of s is multiplied by 1/√(hi·M), M elements per scale. One signed bit: Q(v) = s·sign(v) without
/// a gradient to v. State: s [groups], all 0 until the first input sets it to k·mean|v| / √hi, k = 2, or 4
/// for unsigned values with a scale per position.   Errors  shape: x has other positions than s
class OfqQuantizer final : public Quantizer {
 public:
  explicit OfqQuantizer(const OfqConfig& c);
  Variable fake_quant(const Variable& x) override;
  bool initialised() const override;
  Tensor scale() const override { return s_.data().clone(); }
  void set_scale(const Tensor& s) override { s_.mutable_data().copy_from(s); }
  int64_t stored_values() const override;
  double clipped_share(const Tensor& x) const override;
  TrainedScale trained_scale(const Tensor& x) const override;

 protected:
  void on_state(QuantState from, QuantState to) override;
  void on_load() override { initialised_ = false; }

 private:
  bool per_head() const { return config_.shift.ndim() == 2 && !config_.image; }
  Variable rows(const Variable& v) const;  ///< heads and tokens in one dimension where per_head()
  std::vector<int> scale_order() const;    ///< the scale of each of these rows; empty: as they come
  bool signs() const;                      ///< one signed bit
  bool shifts_inside() const;              ///< the quantizer itself adds `before`
  Levels levels() const;
  LsqSettings settings() const;
  Variable floored_scale() const;
  Variable shifted(const Variable& x, const Variable* bias) const;
  double gradient_factor(const Variable& v) const;
  Variable quantized(const Variable& v) const;
  void prepare(const Variable& v);
  OfqConfig config_;
  Variable& s_;
  Tensor* signed_ = nullptr;
  mutable bool initialised_ = false;  ///< known to the host
  mutable HostCopy known_signed_;
  Variable *before_ = nullptr, *after_ = nullptr;
};

/// quant/ops/statsq.h as a quantizer. State: clip_val [1], the published constant 2, which nothing reads.
class StatsqQuantizer final : public Quantizer {
 public:
  explicit StatsqQuantizer(const QuantSpec& spec);
  Variable fake_quant(const Variable& w) override;
  bool initialised() const override { return true; }
  Tensor scale() const override { return last_scale_; }  ///< a/n of the last input; 0 before
  void set_scale(const Tensor& s) override;
  double clipped_share(const Tensor& w) const override;

 private:
  Tensor last_scale_ = Tensor::zeros({1});
};

}  // namespace lowbit
