#pragma once
// Learned-step-size quantizers of weights and activations: VVTQ, LSQ, LSQ+ and the head-wise variants.

#include "quant/observer/statistics.h"
#include "quant/ops/lsq_list.h"
#include "quant/quantizer/host_copy.h"
#include "quant/quantizer/quantizer.h"

namespace lowbit {

/// Factor of the scale's gradient. v: the quantized tensor, Qp: its highest level.
enum class GradientScale : uint8_t {
  l1,             ///< 1 / √(Σ|v|·Qp)        VVTQ weights; with H groups Σ|v|/H
  numel,          ///< 1 / √(numel·Qp)       LSQ
  numel_over_qp,  ///< 1 / (√numel·Qp)       VVTQ activations
};
/// Where a scale comes from before training.
enum class ScaleInit : uint8_t {
  vvtq,      ///< 2·mean|v| / √(2^(bits−1) − 1), unsigned or not
  lsq,       ///< 2·mean|v| / √Qp
  lsq_plus,  ///< max(|μ − 3σ|, |μ + 3σ|) / 2^(bits−1)
  mse,       ///< least squares, with the offset where there is one
  minmax,    ///< the range of v
};

struct LsqConfig {
  QuantSpec spec;
  GradientScale gradient_scale = GradientScale::numel;
  ScaleInit init = ScaleInit::lsq;
  bool offset = false;
  bool learn_bits = false;
  bool clamp_scale = true;       ///< keep every scale ≥ 1e-4, as VVTQ does
  bool published_scale = false;  ///< LsqSettings::published_scale
  MaskRule mask = MaskRule::clip_then_round;
  TiePolicy ties = TiePolicy::half;
};

/// The settings of vvtq.md for the two places of a quantizer.
LsqConfig vvtq_weight(int bits);
LsqConfig vvtq_activation(int bits, bool is_signed, bool offset);
/// One head per group: `heads` consecutive groups along `axis`, each with its own bit-width, and the scales
/// of a bit-width shared by the heads that use it.
LsqConfig headwise(LsqConfig c, int axis, int64_t heads);
/// Plain LSQ and LSQ+ (offset for activations, symmetric weights).
LsqConfig lsq_plain(int bits, bool is_weight, bool is_signed);
LsqConfig lsq_plus(int bits, bool is_weight, bool is_signed);

/// State: nbits [1] or [heads], alpha [7] (a scale for each of 2 … 8 bits; the one of the current bit-width
/// is used), beta [7] with `offset`, init_state [1]. The names of VVTQ checkpoints. A forward pass first
/// clamps nbits to [2, 8] and alpha to ≥ 1e-4 in place and initialises from its
/// own input if init_state is 0; after that it is a pure function. On a device the host waits for nothing in
/// it, but for the widths where they are trained and nobody has told them (know_widths).
/// Errors  numeric, named after the slot: values or scales that are not finite
class LsqQuantizer final : public Quantizer {
 public:
  static constexpr int kMinBits = 2, kMaxBits = 8, kSlots = kMaxBits - kMinBits + 1;

  explicit LsqQuantizer(const LsqConfig& c);
  Variable fake_quant(const Variable& x) override;
  bool initialised() const override;
  Tensor scale() const override;
  void set_scale(const Tensor& s) override;
  double clipped_share(const Tensor& x) const override;
  TrainedScale trained_scale(const Tensor& x) const override;
  int bits() const override;                         ///< the largest of a head-wise quantizer
  const Variable& widths() const { return nbits_; }  ///< [1] or [heads], trained or not
  /// What widths() holds now, read by somebody who reads many; clamps them, as a forward pass does. The host
  /// waits for nothing in the forward passes until they change again. Returns bits() of every group.
  std::vector<int> know_widths(std::vector<float> values);
  /// Sets alpha (and beta) from v by `init`.
  void initialise(const Tensor& v);
  const LsqConfig& config() const { return config_; }
  /// Whether a pass over many quantizers can serve this one, and its row in the list for the weight w, or for
  /// activations (undefined); first and last are the pass's.
  bool listable(bool of_weight) const;
  LsqListItem list_item(const Tensor& w) const;
  /// Null: computes everything itself. `made` must live until then.
  void use(const LsqPrepared* made) { made_ = made; }
  const Variable& alpha() const { return alpha_; }  ///< the scales of all bit-widths
  /// dα/d(sum): what the scale's gradient is multiplied by for this input, f32 [groups].
  Tensor grad_scale(const Variable& v) const;

 protected:
  void on_state(QuantState from, QuantState to) override;

 private:
  void clamp_bits();
  double numel_factor(int64_t numel, int highest) const;
  std::vector<int> group_bits() const;
  ScaleFit initial(const Tensor& v, int bits) const;
  LsqSettings settings() const;
  LsqConfig config_;
  Variable& nbits_;
  Variable& alpha_;
  Variable* beta_ = nullptr;
  Tensor& init_state_;
  mutable HostCopy known_bits_, known_state_;
  const LsqPrepared* made_ = nullptr;
};

}  // namespace lowbit
