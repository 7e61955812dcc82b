#pragma once
// Runs a training step: kernel by kernel, or recorded once as a graph of the device and launched as a whole.

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tensor/core/device_graph.h"
#include "train/metrics/log.h"

namespace lowbit {

/// A step in parts. Whatever its kernels read that changes from step to step lies in device memory.
struct StepParts {
  std::function<void()> begin;    ///< on the host: brings those values up to date, as far as they are known
  std::function<void()> compute;  ///< forward and backward
  /// Empty, or what passes between processes. A wait for another process must end when that one is gone,
  /// which only the host can see to. So with it a step is two graphs, unless `captured`.
  std::function<void()> exchange;
  /// With an exchange that may be captured as well, so that it runs beside backward: the step is one graph.
  /// All processes capture in the same step.
  struct Captured {
    /// Whether all processes have been able to capture theirs; one that has not fails this one's capture.
    std::function<bool(bool mine)> agree;
    std::function<void()> launched;  ///< after each launch: watches, with a limit, whether the graph ends
  };
  std::optional<Captured> captured;
  bool whole() const { return !exchange || captured; }  ///< the step is one graph
  /// On the host: the values that depend on which parameters have a gradient. With one graph for the step
  /// those of the step that was captured, and there is no begin().
  std::function<void()> prepare;
  std::function<void()> update;  ///< clipping, optimizer, averages
};

/// One graph, or two around an exchange that cannot be captured, for each key, which names everything that
/// decides what a step does: the phase of the run and the shapes of its batches. A key is run kernel by
/// kernel for `warmup` steps in a row, the last two of them with the memory of the graph, so that libraries,
/// constants and pools are there; then it is captured. A short last batch never comes so often in a row. Of
/// more than kMostKeys the one that was not used for longest is forgotten. Both ways give the same bits.
class StepRunner {
 public:
  enum class Mode { eager, graph };
  static constexpr size_t kMostKeys = 8;
  /// `strict`: what cannot be captured is an error; otherwise it is said once and run kernel by kernel.
  StepRunner(Mode mode, Device d, bool strict, Log& log, int warmup = 3);
  /// Whether steps are, or will be, captured.
  bool graphs() const { return mode_ == Mode::graph; }
  /// From now on every step is run kernel by kernel.
  void give_up(const std::string& why);
  /// True: the step was launched as a graph that an earlier one has recorded.
  bool run(const std::string& key, const StepParts& parts);
  bool captured(const std::string& key) const { return graphs_.contains(key); }
  /// Something else has run on the device, an evaluation say: what is not captured yet is rehearsed anew.
  void interrupt() { in_a_row_ = 0; }
  /// Forgets what was recorded.
  void reset();
  int64_t nodes() const { return nodes_; }  ///< of the step that was captured last

 private:
  struct Recorded {
    std::unique_ptr<DeviceGraph> compute, update;  ///< compute is the whole step where that is one graph
    int64_t used = 0;
  };
  std::unique_ptr<DeviceGraph> capture(const std::function<void()>& work, std::string& why);
  void keep(const std::string& key, Recorded r, bool sums);
  static void launch_whole(DeviceGraph& graph, const StepParts& parts);
  bool first_launch(const std::string& key, const StepParts& parts);
  void run_eagerly(const StepParts& parts, bool rehearse);
  Mode mode_;
  Device device_;
  bool strict_;
  Log& log_;
  int warmup_;
  std::string last_;
  int in_a_row_ = 0;
  std::unique_ptr<DevicePool> pool_;
  std::map<std::string, Recorded> graphs_;
  int64_t nodes_ = 0, steps_ = 0;
};

}  // namespace lowbit
