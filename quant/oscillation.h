#pragma once
// Watching quantized weights: which of them jump to and fro between two levels, how near they sit to a
// threshold, how many are clipped.
//
// Tracker   codes x_t of one weight, state prev (the codes before), dir (direction of the last change, 0 at
//           first), o (running average of "has oscillated", 0 at first):
//             d = sign(prev − x_t);  osc = [dir·d = −1];  o = m·osc + (1 − m)·o;  dir = d where d ≠ 0;
//             prev = x_t
//           With a freeze threshold, x_t is first replaced by the frozen code where one exists, and after the
//           update every element with o > threshold is frozen: at rint(e), e the running average of its codes
//           (e = m·x_t + (1 − m)·e, updated last), or at x_t.
// Source    Nagel et al. 2022, "Overcoming Oscillations in Quantization-Aware Training"; TrackOscillation of
//           VVTQ and OFQ. The step is a kernel (quant/ops/oscillation_step.h); state and counts stay where
//           the weights are.

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "quant/ops/oscillation_step.h"
#include "quant/quantizer/quantizer.h"

namespace lowbit {

using TensorsByName = std::map<std::string, Tensor>;

struct OscillationSettings {
  double momentum = 0.01;
  double freeze_threshold = 0;    ///< 0: nothing is frozen
  bool freeze_at_average = true;  ///< else at the code of the moment
  bool totals = false;            ///< count the oscillations of every element
};

class OscillationTracker {
 public:
  explicit OscillationTracker(const OscillationSettings& s = {}) : settings_(s) {}
  struct Counts {
    int64_t flips = 0;         ///< elements whose code has changed in the last step
    int64_t oscillations = 0;  ///< of these, against the direction of their last change
    int64_t oscillating = 0;   ///< elements with o > kOscillating
    int64_t all_flips = 0;     ///< of the steps since forget_flips()
  };
  /// One step; codes i8 or u8, packed, always of one shape and device. With freezing, frozen elements of
  /// `codes` are overwritten. The first call only remembers.
  void update(Tensor& codes);
  Counts counts() const;  ///< waits for the device
  void forget_flips();
  /// By name: code, direction (i8), frequency (o, f32); with totals total (i32); with freezing frozen (u8),
  /// frozen_code, average. Shares memory; empty before the first update.
  const TensorsByName& state() const { return state_; }
  void load(TensorsByName state, const Counts& c) {
    state_ = std::move(state), counts_ = c;
    device_counts_ = {};
  }
  /// For the coming updates; whether anything can be frozen is decided at construction. Not in the kernel's
  /// arguments but in memory, so that a repeated sequence of launches sees it.
  void set_freeze_threshold(double threshold);
  const Tensor& frequency() const { return state_.at("frequency"); }

 private:
  void start(const Tensor& codes);
  OscillationSettings settings_;
  TensorsByName state_;
  Counts counts_;                            ///< those loaded, until the first update
  Tensor device_counts_, threshold_, work_;  ///< undefined before that
};

/// The codes as a product would get them; undefined where the layout has none. Looking changes no quantizer.
Coded weight_codes(Quantizer& q, const Variable& w);

/// Distance of each weight to the nearest rounding threshold, in levels: 0 … ½; NaN where the weight lies
/// outside the levels. `c` is the quantized `w`; one scale per tensor or per index of the axis.
Tensor threshold_distances(const Tensor& w, const Coded& c);

/// Every quantized weight of a model, over a training run.
class WeightWatch {
 public:
  explicit WeightWatch(Module& model, const OscillationSettings& s = {});
  bool empty() const { return layers_.empty(); }
  /// Before the forward pass of each update. Reads nothing from the device.
  void step();
  /// A step that a device has repeated by itself, from a graph.
  void count_step() { ++steps_; }
  /// Share of all watched weights that changed their code in the last step. Waits for the device.
  double flip_rate() const;

  struct Layer {
    std::string name;  ///< "blocks.0.attn.qkv"
    double flip_rate;  ///< changed codes per weight and step since the last call
    double share;      ///< of weights that oscillate
    double frequency;  ///< mean of o
    int64_t weights;
  };
  std::vector<Layer> report();                           ///< waits for the device
  static Layer total(const std::vector<Layer>& layers);  ///< weighted by size; name empty

  struct Placement {
    std::string name;
    Tensor distances;  ///< threshold_distances()
    double clipped;    ///< share outside the levels
    double dead_zone;  ///< share whose level is 0
    double outlier;    ///< largest |w| over the standard deviation
  };
  /// Where the weights are now; not of layers with one bit.
  std::vector<Placement> placements() const;

  TensorsByName state() const;
  /// Errors  io: the state of another model
  void load(const TensorsByName& state);

 private:
  struct Watched {
    std::string name;
    Quantizer* quantizer;
    Variable weight;
    OscillationTracker tracker;
  };
  std::vector<Watched> layers_;
  int64_t steps_ = 0;  ///< since the last report
};

}  // namespace lowbit
