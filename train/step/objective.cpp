#include "train/step/objective.h"

#include <algorithm>

#include "autograd/core/node.h"
#include "autograd/ops/broadcast.h"
#include "autograd/ops/cross_entropy.h"
#include "autograd/ops/pointwise.h"

namespace lowbit {
namespace {

/// [B, C] → i64 [B]; the first of equal values.
Tensor argmax_rows(const Tensor& x) {
  const Tensor p = x.to(Device{}).packed();
  const int64_t n = p.size(0), c = p.size(1);
  Tensor best = Tensor::empty({n}, DType::i64);
  int64_t* out = best.data<int64_t>();
  for (int64_t i = 0; i < n; ++i) {
    const float* row = p.data_const<float>() + i * c;
    out[i] = std::max_element(row, row + c) - row;
  }
  return best.to(x.device());
}

}  // namespace

Objective::Objective(const Options& o, ImageModel& model, ImageModel* teacher)
    : o_(o), model_(model), teacher_(teacher) {}

Variable Objective::classified(const Variable& scores, const Loader::Batch& b) const {
  if (b.fields.size() > 2) return soft_cross_entropy(scores, b.fields[2]);
  return cross_entropy(scores, b.fields[1], o_.real("smoothing"));
}

Tensor Objective::taught(const Variable& images) const {
  const NoGrad off;
  return (*teacher_)(images).data();
}

Variable Objective::operator()(const Loader::Batch& b, Variable& logits) {
  const Variable images(b.fields[0]);
  const ImageModel::Heads h = model_.heads(images);
  logits = h.cls;
  const Variable base = classified(h.cls, b);
  if (!teacher_) {
    // Without a teacher both heads learn the labels.
    return h.dist.defined() ? scale(add(base, classified(h.dist, b)), 0.5) : base;
  }
  const Tensor target = taught(images);
  const double alpha = o_.real("distill-alpha"), temperature = o_.real("distill-temperature");
  const Variable& student = h.dist.defined() ? h.dist : h.cls;
  const Variable distilled = o_.text("distill") == "hard"
                                 ? cross_entropy(student, argmax_rows(target))
                                 : kl_divergence(student, Variable(target), temperature);
  return add(scale(base, 1 - alpha), scale(distilled, alpha));
}

}  // namespace lowbit
