#pragma once
// What a step minimises over a batch: labels, stored soft labels, a teacher. See docs/methods/ofq.md.

#include "data/core/loader.h"
#include "train/config/compat.h"
#include "train/step/features.h"

namespace lowbit {

class Objective {
 public:
  /// `teacher` may be null. Errors  usage: a teacher with other layers where layers are compared
  Objective(const Options& o, ImageModel& model, ImageModel* teacher);
  /// The loss of a prepared batch (prepare_batch); `logits` become the class scores.
  Variable operator()(const Loader::Batch& b, Variable& logits);

 private:
  Variable classified(const Variable& scores, const Loader::Batch& b) const;
  Tensor taught(const Variable& images);
  Variable oscillation_free(const ImageModel::Heads& h, const Tensor& target, const Loader::Batch& b) const;
  Variable compared_layers() const;
  const Options& o_;
  ImageModel& model_;
  ImageModel* teacher_;
  Compat compat_;
  bool maps_;           ///< of attention
  std::string tokens_;  ///< none, last, all
  FeatureWatch student_features_, teacher_features_;
};

}  // namespace lowbit
