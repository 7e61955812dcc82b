#pragma once
#include "nn/core/module.h"
#include "tensor/core/generator.h"

namespace lowbit {

/// Weight and bias of a convolution whose stride is its kernel, with the names of a conv layer.   Slot:
/// weight.
class PatchConv : public Module {
 public:
  PatchConv(int64_t in_channels, int64_t width, int64_t patch, Generator& init);
  /// x [B, C, H, W] → [B, tokens, width]
  Variable operator()(const Variable& x);

 private:
  Variable &weight_, &bias_;  // [O, C, P, P], [O]
  Slot& weight_slot_;
  int64_t patch_;
};

/// Images to tokens: proj( in(x) ).   x [B, 3, H, W] → [B, (H/P)(W/P), C], patches row-major.   Slot: in.
class PatchEmbed : public Module {
 public:
  PatchEmbed(int64_t in_channels, int64_t width, int64_t patch, Generator& init);
  Variable operator()(const Variable& x) { return proj_(in_(x)); }

 private:
  Slot& in_;
  PatchConv& proj_;
};

}  // namespace lowbit
