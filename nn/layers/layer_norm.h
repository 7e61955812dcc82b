#pragma once
#include "nn/core/module.h"

namespace lowbit {

/// y = out( (x − mean) / √(var + eps) · weight + bias ) over the last dimension.   Slot: out.
class LayerNorm : public Module {
 public:
  LayerNorm(int64_t width, double eps);
  Variable operator()(const Variable& x);

 private:
  Variable &weight_, &bias_;  // [C]
  Slot& out_;
  double eps_;
};

}  // namespace lowbit
