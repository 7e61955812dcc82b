#pragma once
#include "nn/layers/linear.h"

namespace lowbit {

/// fc2( hidden( dropout(act(fc1( in(x) ))) ) ).   x [..., C] → [..., C].   Slots: in, hidden.
class Mlp : public Module {
 public:
  struct Options {
    int64_t width = 192, hidden = 768;
    double dropout = 0;
    bool relu = false;  ///< instead of GELU
    /// The VVTQ float twin clamps the GELU output at 1 (vvtq.md 14, item 16).
    bool clamp_gelu = false;
    const char* names[2] = {"fc1", "fc2"};  ///< of the two layers in checkpoints
  };
  Mlp(const Options& o, Generator& init);
  Variable operator()(const Variable& x);

 private:
  Options options_;
  Slot& in_;
  Linear& fc1_;
  Slot& hidden_;
  Linear& fc2_;
};

}  // namespace lowbit
