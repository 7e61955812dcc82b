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
  double lr;      ///< during the pass
  double lambda;  ///< weight of the bin regulariser during the pass
};

struct EpochPlanOptions {
  int64_t epochs = 150, warmup = 5;
  int crops = 4;
  int64_t resume_epoch = -1;  ///< epoch stored in the checkpoint that the run continues; -1: a fresh run
};

/// The remaining passes in order. `schedule` gives the rate of an epoch.
/// Source: train_VVTQ.py main_worker; the rate of a pass is the one set after the previous pass, for the last
/// single-crop epochs S(e + 1).
std::vector<EpochCall> epoch_plan(const EpochPlanOptions& o, const Schedule& schedule);

/// 0 before a quarter of the run, then 0.01 − 0.005·(1 + cos(π(e − E/4)/(3E/4))).
double bin_regulariser_weight(double epoch, double epochs);

}  // namespace lowbit
