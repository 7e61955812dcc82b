#pragma once
// Confidence-guided annealing (CGA): a last phase of training in which only weights near a rounding threshold
// move.

#include <string>
#include <vector>

#include "quant/quantizer/quantizer.h"

namespace lowbit {

/// Before each update every quantized weight farther than `range` levels from all thresholds between its
/// levels is frozen: its gradient becomes 0, and after the update it gets its value back, which undoes decay
/// and momentum. The masks are formed anew for each update, so a weight that leaves the band freezes and one
/// whose row's scale moved may thaw. Weights without a quantizer of 2 … 7 bits (those of q and k under
/// query-key reparameterization, first and last layer) are never frozen.
/// Source  Liu et al. 2023, "Oscillation-free Quantization for Low-bit Vision Transformers", section 4.3;
/// ofq.md 12
class ConfidenceAnnealing {
 public:
  ConfidenceAnnealing(Module& model, double range);
  bool empty() const { return layers_.empty(); }
  /// Gradients must be complete and not yet clipped.
  void before_update();
  void after_update();
  double free_share() const;  ///< of the weights in the last update
  /// 1 where the weight was free in the last update; by name of the weight.
  std::vector<std::pair<std::string, Tensor>> masks() const;

 private:
  struct Layer {
    std::string name;
    Quantizer* quantizer;
    Variable weight;
    Tensor free, frozen;  ///< 1 or 0; the weight times 1 − free
  };
  double range_;
  std::vector<Layer> layers_;
};

}  // namespace lowbit
