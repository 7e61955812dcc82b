#pragma once
// Which passes over the images a run with soft labels makes (VVTQ / FKD): an image that yields c crops per
// visit counts as c epochs, so most passes cover c epochs; the warm-up and the last c epochs use one crop.

#include <cstdint>
#include <vector>

#include "train/schedule/schedule.h"

namespace lowbit {

struct EpochCall {
  int64_t epoch;
  int crops;      ///< per image in this pass
  double time;    ///< of the schedule, epochs
  double lr;      ///< during the pass, where the rate changes between passes only
  double lambda;  ///< weight of the bin regulariser during the pass
};

struct EpochPlanOptions {
  int64_t epochs = 150, warmup = 5;
  int crops = 4;
  int64_t resume_epoch = -1;  ///< epoch stored in the checkpoint that the run continues; -1: a fresh run
};

/// The pass that begins at an epoch; the next one begins `crops` epochs later.
/// Source: train_VVTQ.py main_worker; the rate of a pass is the one set after the previous pass, for the last
/// single-crop epochs S(e + 1).
EpochCall epoch_call(const EpochPlanOptions& o, const Schedule& schedule, int64_t epoch);

/// The remaining passes in order, after a restart those of the published trainer, which skips crops − 1
/// epochs when it continues from one of the last single-crop epochs.
std::vector<EpochCall> epoch_plan(const EpochPlanOptions& o, const Schedule& schedule);

/// 0 before a quarter of the run, then 0.01 − 0.005·(1 + cos(π(e − E/4)/(3E/4))).
double bin_regulariser_weight(double epoch, double epochs);

}  // namespace lowbit
