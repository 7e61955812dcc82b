#pragma once
// What is watched while a model trains: the oscillation of its weights, and the signs of a run that goes
// wrong.

#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "nn/models/image_model.h"
#include "quant/oscillation.h"
#include "train/metrics/log.h"
#include "train/metrics/run_log.h"
#include "train/optim/arena.h"

namespace lowbit {

/// Warnings of a training run. Each is given once for each layer; what several layers have in common at one
/// step is one line, and after a few lines of a kind there are no more.
class Warnings {
 public:
  explicit Warnings(Log& log) : log_(log) {}
  /// Scales after an update, by slot: not positive, or changed by more than half since the call before.
  void scales(int64_t step, const std::vector<std::pair<std::string, std::vector<float>>>& now);
  /// After backward: weight matrices without any gradient for three steps in a row.
  void gradients(int64_t step, const ParameterArena& a);
  /// More than a fifth of a layer's weights outside the levels.
  void clipped(int64_t step, const std::vector<std::pair<std::string, double>>& shares);
  /// Mean seconds of a step and of the waiting for data in it: more than half is waiting.
  void loader(int64_t step, double step_seconds, double waited, int64_t workers);

 private:
  using Found = std::vector<std::pair<std::string, std::string>>;  // layer, what is wrong with it
  void give(const std::string& kind, int64_t step, const Found& found);
  Log& log_;
  std::set<std::string> given_;             // kind and layer
  std::map<std::string, int> lines_;        // by kind
  std::map<std::string, int> no_gradient_;  // steps in a row
  std::map<std::string, std::vector<float>> scales_;
};

class Monitor {
 public:
  /// `track`: the oscillation of the weights too.
  Monitor(ImageModel& model, bool track, Log& log);
  bool tracking() const { return watch_.has_value(); }
  void before_step() {
    if (watch_) watch_->step();
  }
  /// before_step() was part of a graph that has been launched again.
  void replayed() {
    if (watch_) watch_->count_step();
  }
  void after_backward(int64_t step, const ParameterArena& a) { warnings_.gradients(step, a); }
  void after_update(int64_t step);
  double flip_rate() const { return watch_ ? watch_->flip_rate() : -1; }
  /// osc/…, osc/share/<layer>, osc/flip_rate/<layer>, scale/<layer> of the steps since the last call.
  Metrics metrics();
  double share() const {
    return share_;
  }  ///< of weights that oscillate, at the last metrics(); negative: unknown
  /// Where the weights lie between the thresholds: an event "weights", histograms, a warning, a line of log.
  void placements(int64_t step, int64_t epoch, RunLog& run_log);
  Warnings& warnings() { return warnings_; }

  TensorMap state() const;
  void load(const TensorMap& s);

 private:
  ImageModel& model_;
  Log& log_;
  std::optional<WeightWatch> watch_;
  Warnings warnings_;
  double share_ = -1;
};

/// Runs `pass` again with every operation's output checked and says which was the first that is not finite,
/// and the slot of the model that was passed before it; or which input or parameter is not finite already.
std::string find_nonfinite(ImageModel& model, const Tensor& images, const std::function<void()>& pass);

}  // namespace lowbit
