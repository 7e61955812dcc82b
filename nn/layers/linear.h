#pragma once
#include "nn/core/module.h"
#include "tensor/core/generator.h"

namespace lowbit {

/// y = out( x · weight(W)ᵀ + b ).   x [..., K] → [..., N].   Slots: weight, out.
class Linear : public Module {
 public:
  /// Weights truncated normal with std 0.02, bias 0 (the convention of timm's vision transformers).
  Linear(int64_t in_features, int64_t out_features, bool bias, Generator& init);
  Variable operator()(const Variable& x) { return all({this}, x, false)[0]; }
  /// The same, stored as bf16 in --precision bf16 where x is floats (LinearLayer::narrow): for what stays
  /// inside a model.
  Variable narrowed(const Variable& x) { return all({this}, x, true)[0]; }
  /// Outputs of equal runs of rows, as q, k and v of a fused projection, narrowed; not through `out`.
  std::vector<Variable> parts(const Variable& x, int64_t count);
  /// The outputs of several layers of one input, narrowed.
  static std::vector<Variable> together(const Variable& x, std::initializer_list<Linear*> layers) {
    return all(layers, x, true);
  }
  Variable quantized_weight() { return weight_slot_(weight_); }
  const Variable& raw_weight() const { return weight_; }  ///< for layers that quantize a function of it
  int64_t in_features() const { return weight_.size(1); }
  int64_t out_features() const { return weight_.size(0); }

 private:
  static std::vector<Variable> all(std::initializer_list<Linear*> layers, const Variable& x, bool narrow);
  Variable bias() const { return bias_ ? *bias_ : Variable{}; }
  Variable& weight_;  // [N, K]
  Variable* bias_ = nullptr;
  Slot& weight_slot_;
  Slot& out_;
};

}  // namespace lowbit
