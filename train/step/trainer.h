#pragma once
// The training loop of image classifiers: step, evaluation, checkpoints, resume.

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "data/core/loader.h"
#include "nn/models/image_model.h"
#include "quant/annealing.h"
#include "quant/freezing.h"
#include "quant/lsq_pass.h"
#include "train/checkpoint/state.h"
#include "train/dist/update_sum.h"
#include "train/metrics/log.h"
#include "train/metrics/progress.h"
#include "train/metrics/run_log.h"
#include "train/optim/ema.h"
#include "train/optim/optimizer.h"
#include "train/schedule/epoch_plan.h"
#include "train/step/bit_budget.h"
#include "train/step/build.h"
#include "train/step/evaluate.h"
#include "train/step/monitor.h"
#include "train/step/objective.h"
#include "train/step/step_runner.h"
#include "train/step/step_values.h"

namespace lowbit {

struct TrainOutcome {
  bool stopped = false;  ///< by a signal or a limit, after a clean checkpoint
  int64_t steps = 0;     ///< updates so far, over all runs that were resumed
  EvalResult last;
  double best_top1 = -1;       ///< percent; negative: never evaluated
  double train_img_per_s = 0;  ///< of the last epoch
};

/// Asked after every step: true ends the run with a checkpoint.
using StopRequest = std::function<bool()>;

class Trainer {
 public:
  /// The model is loaded, quantized and calibrated. An update is the mean over the --accumulate batches of
  /// every rank; the ranks compute everything else alike, and rank 0 writes.
  Trainer(const Options& o, ImageModel& model, ImageModel* teacher, const DataSets& data, Log& log,
          Communicator& ranks = alone());
  /// Continues from a checkpoint of this run: every later bit is that of the uninterrupted run.
  /// Errors  io: not a checkpoint of this model and these options; its message begins with `what`
  void resume(const RunCheckpoints::Resume& from, const std::string& what);
  /// Begins with the optimizer's moments and step count of another run of this model.   Errors  io
  void take_moments(const RunCheckpoints::Resume& from, const std::string& what);
  /// `folder` is the run folder and exists. Ends at --epochs or --max-steps with an evaluation.
  /// Errors  numeric: loss not finite, with the op that made it so; io, run: data, disk
  TrainOutcome run(const std::string& folder, const StopRequest& stop);
  /// Nothing is left to do; outcome() is that of the run before.
  bool finished() const;
  const TrainOutcome& outcome() const { return outcome_; }
  int64_t steps() const;  ///< of the passes that are left
  const StepRunner& runner() const { return runner_; }
  int64_t images_per_step() const;
  const Schedule& schedule() const { return schedule_; }

 private:
  enum class Pass { whole, limit, stopped };
  Pass train_epoch(const StopRequest& stop);
  bool at_limit() const;
  // trainer_step.cpp
  /// A batch in the memory that a graph reads, and where its results are.
  struct Result {
    Tensor loss, logits, labels;
  };
  struct Resident {
    std::vector<Loader::Batch> parts;
    std::vector<Result> results;
    std::vector<char> has_grad;  ///< of the parameters
  };
  std::string why_eager() const;
  std::string step_key(const std::vector<Loader::Batch>& parts);
  const std::vector<Loader::Batch>& resident(Resident& r, const std::vector<Loader::Batch>& parts);
  void step(const std::vector<Loader::Batch>& parts);
  void compute(const std::vector<Loader::Batch>& parts);
  void update();
  void regularize();
  void read_results(const Loader::Batch* b);
  void take_results();
  [[noreturn]] void stop_nonfinite(const Loader::Batch* b, const std::string& what);
  bool evaluate_now(const StopRequest& stop);  // false: stopped
  bool finish(bool whole_epoch, const StopRequest& stop);
  void write_summary();
  void report_step(double seconds, double waited);
  void save_last();
  void refresh_report(bool running);
  Checkpoint weights_checkpoint();
  /// The pass over the images that begins at an epoch: `crops` epochs with stored soft labels, else one.
  EpochCall pass_at(int64_t epoch) const;
  int64_t steps_of(const EpochCall& pass) const;
  int64_t images_each(const EpochCall& pass) const;
  void open_pass();  // takes over that of epoch_
  double rate() const;
  /// An option whose value moves to that of "<name>-final" over the run.
  double scheduled(const std::string& name) const;
  void make_remedies();

  const Options& o_;
  ImageModel& model_;
  Objective objective_;
  const DataSets& data_;
  Log& log_;
  Communicator& ranks_;
  StringMap settings_;
  ParameterArena arena_;
  UpdateSum sum_;
  Optimizer optimizer_;
  std::optional<Ema> ema_;
  std::optional<ConfidenceAnnealing> annealing_;
  std::optional<IterativeFreezing> freezing_;
  Schedule schedule_;
  std::optional<Loader> train_;
  Loader val_;
  std::optional<RunCheckpoints> checkpoints_;
  std::optional<RunLog> run_log_;
  StepValues values_;
  std::map<std::string, Resident> resident_;  ///< by step_key(); graphs in runner_ refer to it
  StepRunner runner_;
  TrainedWidths widths_;
  Monitor monitor_;
  std::vector<Quantizer*> quantizers_;
  std::optional<LsqPass> lsq_pass_;  ///< on a device, where it saves kernels
  std::vector<Result> results_;      ///< of the step under way
  std::vector<Result> unread_;       ///< not read yet: reading waits for the device
  double last_read_ = 0;             ///< when
  struct Figures {
    TopCounts counts;
    double loss;
  };
  std::vector<Figures> figures_;  ///< of this rank's batches since take_results()
  TrainProgress progress_;
  int64_t epochs_;
  int64_t epoch_ = 0, step_in_epoch_ = 0, step_ = 0;
  EpochCall pass_{};  ///< the one under way
  int64_t steps_per_epoch_ = 0, loader_crops_ = -1;
  std::string folder_;
  double report_due_ = 0;        ///< time of the next report while training
  int64_t evaluated_step_ = -1;  ///< step_ at the last evaluation
  TrainOutcome outcome_;
};

/// Schedule and optimizer settings that the options name.
ScheduleOptions schedule_options(const Options& o, int64_t steps_per_epoch);
OptimizerOptions optimizer_options(const Options& o);

}  // namespace lowbit
