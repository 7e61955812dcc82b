#pragma once
// The training loop of image classifiers: step, evaluation, checkpoints, resume.

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "data/core/loader.h"
#include "nn/models/vit.h"
#include "train/checkpoint/state.h"
#include "train/metrics/log.h"
#include "train/metrics/progress.h"
#include "train/metrics/run_log.h"
#include "train/optim/ema.h"
#include "train/optim/optimizer.h"
#include "train/schedule/schedule.h"
#include "train/step/build.h"
#include "train/step/evaluate.h"

namespace lowbit {

struct TrainOutcome {
  bool stopped = false;  ///< by a signal or a limit, after a clean checkpoint
  int64_t steps = 0;     ///< updates so far, over all runs that were resumed
  EvalResult last;
  double best_top1 = 0;
  double train_img_per_s = 0;  ///< of the last epoch
};

/// Asked after every step: true ends the run with a checkpoint.
using StopRequest = std::function<bool()>;

class Trainer {
 public:
  /// The model is loaded, quantized and calibrated. `folder` is the run folder.
  Trainer(const Options& o, VisionTransformer& model, VisionTransformer* teacher, const DataSets& data,
          std::string folder, Log& log);
  /// Continues from a checkpoint of this run: every later bit is that of the uninterrupted run.
  void resume(const RunCheckpoints::Resume& from);
  /// Errors  numeric: loss not finite, with the op that made it so; io, run: data, disk
  TrainOutcome run(const StopRequest& stop);
  int64_t steps_per_epoch() const { return steps_per_epoch_; }
  const Schedule& schedule() const { return schedule_; }

 private:
  bool train_epoch(const StopRequest& stop);  // false: stopped inside the epoch
  void step(const std::vector<Loader::Batch>& parts);
  Variable loss(const Loader::Batch& b, Variable& logits);
  void check_loss(float value, const Loader::Batch& b);
  void finish_epoch();
  void report_step(const Loader::Batch& b, double seconds, double waited);
  void save_last();
  Checkpoint weights_checkpoint();
  double rate() const;

  const Options& o_;
  VisionTransformer& model_;
  VisionTransformer* teacher_;
  Log& log_;
  std::string folder_;
  StringMap settings_;
  ParameterArena arena_;
  Optimizer optimizer_;
  std::optional<Ema> ema_;
  Schedule schedule_;
  Loader train_, val_;
  RunCheckpoints checkpoints_;
  std::optional<RunLog> run_log_;
  TrainProgress progress_;
  int64_t accumulate_, steps_per_epoch_, epochs_;
  int64_t epoch_ = 0, step_in_epoch_ = 0, step_ = 0;
  double best_top1_ = -1;
  TrainOutcome outcome_;
};

/// Schedule and optimizer settings that the options name.
ScheduleOptions schedule_options(const Options& o, int64_t steps_per_epoch);
OptimizerOptions optimizer_options(const Options& o);

}  // namespace lowbit
