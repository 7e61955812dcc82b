#pragma once
#include "nn/core/module.h"
#include "tensor/core/generator.h"

namespace lowbit {

/// y = out( x · weight(W)ᵀ + b ).   x [..., K] → [..., N].   Slots: weight, out.
class Linear : public Module {
 public:
  /// Weights truncated normal with std 0.02, bias 0 (the convention of timm's vision transformers).
  Linear(int64_t in_features, int64_t out_features, bool bias, Generator& init);
  Variable operator()(const Variable& x);
  /// Outputs of equal runs of rows, as q, k and v of a fused projection; not through `out`.
  std::vector<Variable> parts(const Variable& x, int64_t count);
  /// The outputs of several layers of one input.
  static std::vector<Variable> together(const Variable& x, std::initializer_list<Linear*> layers);
  Variable quantized_weight() { return weight_slot_(weight_); }
  const Variable& raw_weight() const { return weight_; }  ///< for layers that quantize a function of it
  int64_t in_features() const { return weight_.size(1); }
  int64_t out_features() const { return weight_.size(0); }

 private:
  Variable bias() const { return bias_ ? *bias_ : Variable{}; }
  Variable& weight_;  // [N, K]
  Variable* bias_ = nullptr;
  Slot& weight_slot_;
  Slot& out_;
};

}  // namespace lowbit
