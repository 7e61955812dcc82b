#pragma once
#include <functional>

#include "data/core/loader.h"
#include "nn/models/image_model.h"
#include "train/dist/communicator.h"
#include "train/metrics/averages.h"

namespace lowbit {

struct EvalResult {
  TopCounts counts;
  double loss = 0;     ///< mean cross entropy, hard labels
  double seconds = 0;  ///< wall time, loading included
  double img_per_s() const { return seconds > 0 ? double(counts.total) / seconds : 0; }
};

/// Runs the model over one epoch of the loader in evaluation mode and restores its mode. Every rank takes a
/// batch in turn (its share of the loader); all get the same figures, whatever their number. `progress` is
/// called with those so far after every batch, or one for each rank; when it returns false on any of them the
/// evaluation ends early.
EvalResult evaluate(ImageModel& model, Loader& loader,
                    const std::function<bool(const EvalResult&, int64_t batch)>& progress = {},
                    Communicator& ranks = alone());

}  // namespace lowbit
