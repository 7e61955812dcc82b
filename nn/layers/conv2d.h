#pragma once
#include "autograd/ops/conv2d.h"
#include "nn/core/module.h"
#include "tensor/core/generator.h"

namespace lowbit {

/// y = conv(x, weight(W)) + b on channel-last maps.   x [B, H, W, C] → [B, H', W', O].   Slot: weight.
class Conv2d : public Module {
 public:
  /// U(±1/√fan_in) for both, the framework default of the published models.
  Conv2d(int64_t in_channels, int64_t out_channels, int64_t kernel, const ConvOptions& o, Generator& init);
  Variable operator()(const Variable& x);

 private:
  ConvOptions options_;
  Variable &weight_, &bias_;  // [O, C/groups, K, K], [O]
  Slot& weight_slot_;
};

/// Normalisation per channel of channel-last maps (autograd/ops/batch_norm.h).
class BatchNorm : public Module {
 public:
  explicit BatchNorm(int64_t channels, double eps = 1e-5, double momentum = 0.1);
  Variable operator()(const Variable& x);

 private:
  Variable &weight_, &bias_;                      // [C]
  Tensor &running_mean_, &running_var_, &count_;  // [C], [C], batches seen
  double eps_, momentum_;
};

}  // namespace lowbit
