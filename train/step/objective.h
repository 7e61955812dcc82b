#pragma once
// What a step minimises over a batch: labels, stored soft labels, a teacher.

#include "data/core/loader.h"
#include "nn/models/image_model.h"
#include "train/config/options.h"

namespace lowbit {

class Objective {
 public:
  /// `teacher` may be null.
  Objective(const Options& o, ImageModel& model, ImageModel* teacher);
  /// The loss of a prepared batch (prepare_batch); `logits` become the class scores.
  Variable operator()(const Loader::Batch& b, Variable& logits);

 private:
  Variable classified(const Variable& scores, const Loader::Batch& b) const;
  Tensor taught(const Variable& images) const;
  const Options& o_;
  ImageModel& model_;
  ImageModel* teacher_;
};

}  // namespace lowbit
