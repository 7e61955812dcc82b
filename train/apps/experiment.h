#pragma once
// The common start of train and eval.

#include <memory>

#include "train/dist/communicator.h"
#include "train/metrics/log.h"
#include "train/step/build.h"

namespace lowbit {

/// Options completed by what the weight file says about its model, the data, and the model with its weights,
/// quantizers and calibrated scales.
struct Experiment {
  Options options;
  DataSets data;
  std::unique_ptr<ImageModel> model;
};

/// Throws Error(usage, io). `training`: the number of classes follows the data and a classifier of another
/// size is replaced; otherwise it follows the weights.
Experiment open_experiment(const Options& o, bool training, Log& log);

/// Of ranks other than 0 only errors are seen, as that of the program.
LogOptions log_options(const Options& o, const Communicator& ranks = alone());

}  // namespace lowbit
