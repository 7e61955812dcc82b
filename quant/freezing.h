#pragma once
// Iterative freezing: weights that oscillate between two levels are fixed on one of them.

#include <string>
#include <vector>

#include "quant/oscillation.h"

namespace lowbit {

/// Every step, before the forward pass, the codes of each weight with a trained scale (LSQ in any of its
/// forms) go to an OscillationTracker, which freezes those whose average of oscillations passes a threshold
/// at the code where they are most of the time. A frozen weight stays on its code while the scale moves:
///   w = scale·code (a quarter of a level inside where the code is the lowest or highest, so that it counts
///   as not clipped);  y = scale·code;  dw = 0;  the scale gets g·Σ G·code of it, as of a constant
/// The weight itself carries what is frozen, so that a model file evaluates the same without the trackers.
/// Source  Nagel et al. 2022, "Overcoming Oscillations in Quantization-Aware Training"; ofq.md 3.3 and 13
class IterativeFreezing {
 public:
  IterativeFreezing(Module& model, const OscillationSettings& s);
  bool empty() const { return layers_.empty(); }
  /// For the coming steps; 0 freezes nothing more.
  void set_threshold(double threshold);
  /// Before the forward pass of an update. Nothing of a step is read from the device.
  void before_step();
  /// Gradients must be complete and not yet clipped.
  void before_update();
  void after_update();
  double frozen_share() const;  ///< of the watched weights; waits for the device

  /// "<layer>/<entry of the tracker>".
  TensorsByName state() const;
  /// Errors  io: the state of another model
  void load(const TensorsByName& state);

 private:
  struct Layer {
    std::string name;
    Quantizer* quantizer;
    Variable weight;
    OscillationTracker tracker;
    Tensor held;  ///< u8: the weights that are on their frozen codes in this step
  };
  static void pin(Layer& l, const Coded& now);
  std::vector<Layer> layers_;
};

/// From `begin` to `end` along half a cosine; `share` of the run is over.
double annealed(double begin, double end, double share);

}  // namespace lowbit
