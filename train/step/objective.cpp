#include "train/step/objective.h"

#include "autograd/core/node.h"
#include "autograd/ops/argmax.h"
#include "autograd/ops/broadcast.h"
#include "autograd/ops/cross_entropy.h"
#include "autograd/ops/pointwise.h"

namespace lowbit {
Objective::Objective(const Options& o, ImageModel& model, ImageModel* teacher)
    : o_(o),
      model_(model),
      teacher_(teacher),
      compat_(compat(o)),
      maps_(teacher && o.text("distill") == "ofq" && o.integer("kd-mode") >= 2),
      tokens_(teacher ? o.text("token-kd") : "none"),
      student_features_(model, maps_, tokens_ != "none"),
      teacher_features_(teacher ? *teacher : model, maps_, tokens_ != "none") {
  LOWBIT_CHECK(!(maps_ || tokens_ != "none") || !o.flag("recompute"), usage, "",
               "--kd-mode 2, 3 and --token-kd compare what passes inside the blocks: not with --recompute");
}

Variable Objective::classified(const Variable& scores, const Loader::Batch& b) const {
  if (b.fields.size() > 2) return soft_cross_entropy(scores, b.fields[2]);
  return cross_entropy(scores, b.fields[1], o_.real("smoothing"));
}

Tensor Objective::taught(const Variable& images) {
  const NoGrad off;
  teacher_features_.clear();
  // The published teacher is never switched to evaluation, so that only its class head is heard.
  if (compat_ == Compat::ofq) return teacher_->heads(images).cls.data();
  return (*teacher_)(images).data();
}

Variable Objective::oscillation_free(const ImageModel::Heads& h, const Tensor& target,
                                     const Loader::Batch& b) const {
  if (o_.integer("kd-mode") == 0) return teacher_cross_entropy(h.cls, Variable(target));
  const double smoothing = compat_ == Compat::ofq ? 0 : o_.real("smoothing");
  return distillation_loss(h.cls, h.dist, Variable(target), b.fields.back(), smoothing);
}

Variable Objective::compared_layers() const {
  Variable sum;
  const auto add_term = [&](const Variable& x) { sum = sum.defined() ? add(sum, x) : x; };
  if (maps_) {
    const bool values = o_.integer("kd-mode") == 3;
    add_term(score_map_loss(student_features_.maps(values), teacher_features_.maps(values), values));
  }
  if (tokens_ != "none") {
    std::span<const Variable> student = student_features_.tokens(), teacher = teacher_features_.tokens();
    if (tokens_ == "last") student = student.last(1), teacher = teacher.last(1);
    add_term(token_loss(student, teacher));
  }
  return sum.defined() ? scale(sum, o_.real("kd-alpha")) : sum;
}

Variable Objective::operator()(const Loader::Batch& b, Variable& logits) {
  const Variable images(b.fields[0]);
  student_features_.clear();
  const ImageModel::Heads h = model_.heads(images);
  logits = h.cls;
  if (!teacher_) {
    const Variable base = classified(h.cls, b);
    // Without a teacher both heads learn the labels; the published second head learns nothing.
    const bool both = h.dist.defined() && compat_ != Compat::ofq;
    return both ? scale(add(base, classified(h.dist, b)), 0.5) : base;
  }
  const Tensor target = taught(images);
  Variable loss;
  if (o_.text("distill") == "ofq") {
    loss = oscillation_free(h, target, b);
  } else {
    const double alpha = o_.real("distill-alpha"), temperature = o_.real("distill-temperature");
    const Variable& student = h.dist.defined() ? h.dist : h.cls;
    const Variable distilled = o_.text("distill") == "hard"
                                   ? cross_entropy(student, argmax_rows(target))
                                   : kl_divergence(student, Variable(target), temperature);
    loss = add(scale(classified(h.cls, b), 1 - alpha), scale(distilled, alpha));
  }
  const Variable layers = compared_layers();
  return layers.defined() ? add(loss, layers) : loss;
}

}  // namespace lowbit
