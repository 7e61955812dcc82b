#pragma once
// Quantizer: what sits in a slot; state and parameters over one fused op.

#include <string>
#include <vector>

#include "nn/core/module.h"
#include "quant/quantizer/spec.h"

namespace lowbit {

/// off: identity; observe: identity, statistics are gathered; fixed: quantizes, the scale is not trained;
/// learned: quantizes with trained parameters, initialised by the first batch where no checkpoint did.
enum class QuantState : uint8_t { off, observe, fixed, learned };
const char* quant_state_name(QuantState s);

class Quantizer : public Module, public Transform {
 public:
  explicit Quantizer(const QuantSpec& spec) : spec_(spec) {}

  Variable apply(const Variable& x) final;
  /// Differentiable; carries integer codes where layout and context allow.
  virtual Variable fake_quant(const Variable& x) = 0;
  /// Gathers statistics of x; only in the state `observe`.
  virtual void observe(const Tensor&) {}
  /// True once the scale is known.
  virtual bool initialised() const = 0;
  virtual Tensor scale() const = 0;                         ///< f32 [groups]
  virtual void set_scale(const Tensor& s) = 0;              ///< search methods write here
  virtual double clipped_share(const Tensor& x) const = 0;  ///< share of values outside the levels
  /// The parameter with the scales of x's groups: group g has scale[index[g]], whose gradient is multiplied
  /// by factors[g]. Undefined where no scale is trained.
  struct TrainedScale {
    Variable scale;
    Tensor index, factors;  ///< i64 and f32 [groups] on the device of x
  };
  virtual TrainedScale trained_scale(const Tensor& /*x*/) const { return {}; }
  virtual int bits() const { return spec_.bits; }  ///< now; differs from spec for learned bits
  /// Numbers that a stored model needs beside the codes: scales, offsets, shifts.
  virtual int64_t stored_values() const { return spec_.groups * (spec_.symmetric ? 1 : 2); }
  /// Integer levels of x as i32.   Errors  value: layouts without integer codes
  Tensor codes(const Tensor& x);

  const QuantSpec& spec() const { return spec_; }
  QuantState quant_state() const { return state_; }
  /// An explicit transition, kept in history(). Same state: nothing happens.
  void set_quant_state(QuantState s, std::string_view reason);
  /// "off -> learned: scheme lsq"; one line per transition.
  const std::vector<std::string>& history() const { return history_; }
  /// The slot's path, for messages.
  const std::string& label() const { return label_; }
  void set_label(std::string label) { label_ = std::move(label); }

 protected:
  virtual void on_state(QuantState /*from*/, QuantState /*to*/) {}
  void note(std::string line) { history_.push_back(std::move(line)); }

 private:
  QuantSpec spec_;
  QuantState state_ = QuantState::off;
  std::string label_ = "quantizer";
  std::vector<std::string> history_;
};

}  // namespace lowbit
