#pragma once
#include <functional>

#include "data/core/loader.h"
#include "nn/models/image_model.h"
#include "train/metrics/averages.h"

namespace lowbit {

struct EvalResult {
  TopCounts counts;
  double loss = 0;     ///< mean cross entropy, hard labels
  double seconds = 0;  ///< wall time, loading included
  double img_per_s() const { return seconds > 0 ? double(counts.total) / seconds : 0; }
};

/// Runs the model over one epoch of the loader in evaluation mode and restores its mode. `progress` is called
/// after every batch with the figures so far; when it returns false the evaluation ends early.
EvalResult evaluate(ImageModel& model, Loader& loader,
                    const std::function<bool(const EvalResult&, int64_t batch)>& progress = {});

}  // namespace lowbit
