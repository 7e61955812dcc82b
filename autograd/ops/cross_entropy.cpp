#include "autograd/ops/cross_entropy.h"

#include "autograd/core/node.h"
#include "autograd/ops/broadcast.h"
#include "autograd/ops/check.h"
#include "autograd/ops/pointwise.h"
#include "autograd/ops/reduce.h"
#include "tensor/engine/pointwise.h"
#include "tensor/engine/row.h"

namespace lowbit {
namespace {

void forward_cpu(const ClassLossFwdArgs& a, Stream) {
  dispatch_real(a.logits.dtype, [&](auto t) { cpu::rows(a.o.rows, a.o.n, ClassLossFwdRow<decltype(t)>(a)); });
}
void backward_cpu(const ClassLossBwdArgs& a, Stream) {
  dispatch_real(a.logits.dtype, [&](auto t) { cpu::rows(a.o.rows, a.o.n, ClassLossBwdRow<decltype(t)>(a)); });
}

struct ClassLossNode final : Node {
  const char* op;
  ClassLossOptions o;
  Saved logits, target;
  ClassLossNode(const char* name, const ClassLossOptions& options) : op(name), o(options) {}
  const char* name() const override { return op; }
  void backward(const Tensor& gy, GradSink& gx) override {
    const bool to_teacher = o.kind == TargetKind::teacher && gx.wants(1);
    Tensor dz = gx.wants(0) ? gx.alloc(0) : Tensor{}, dt = to_teacher ? gx.alloc(1) : Tensor{};  // [B, C]
    class_loss_bwd({o, dz.mutable_view(), dt.mutable_view(), gy.view(), logits.get(op, 0).view(),
                    target.get(op, 1).view()},
                   gy.device());
    if (dz.defined()) gx.add(0, dz);
    if (dt.defined()) gx.add(1, dt);
  }
  void release() override { logits.release(), target.release(); }
  std::vector<Tensor> saved() const override { return {logits.peek(), target.peek()}; }
};

void check_logits(const char* op, const Variable& logits) {
  check_float(op, "logits", logits);
  LOWBIT_CHECK(logits.ndim() == 2 && logits.numel() > 0, shape, op,
               "logits must be [batch, classes], neither empty (got logits=", logits.str(), ")");
}

/// `teacher` is undefined unless the target may receive a gradient.
Variable class_loss(const char* op, ClassLossOptions o, const Variable& logits, const Tensor& target,
                    const Variable& teacher) {
  const Tensor z = logits.data().packed(), t = target.packed();
  o.rows = z.size(0), o.n = z.size(1);
  Tensor loss = Tensor::empty({o.rows}, z.dtype(), z.device());  // [B]
  class_loss_fwd({o, loss.mutable_view(), z.view(), t.view()}, z.device());
  auto node = std::make_shared<ClassLossNode>(op, o);
  node->logits.set(z), node->target.set(t);
  return record(mean(Variable(loss)).data(), std::move(node), {logits, teacher});
}

Variable teacher_loss(const char* op, const Variable& logits, const Variable& teacher, double temperature,
                      bool subtract_entropy) {
  check_logits(op, logits);
  check_same_kind(op, "logits", logits, "teacher", teacher);
  LOWBIT_CHECK(logits.shape() == teacher.shape(), shape, op,
               "logits and teacher must have one shape (got logits=", logits.str(),
               ", teacher=", teacher.str(), ")");
  LOWBIT_CHECK(temperature > 0, value, op, "temperature must be positive (got ", temperature, ")");
  const ClassLossOptions o{
      .kind = TargetKind::teacher, .temperature = temperature, .subtract_entropy = subtract_entropy};
  return class_loss(op, o, logits, teacher.data(), teacher);
}

}  // namespace

KernelSlot<ClassLossFwdArgs> class_loss_fwd{"class_loss.fwd", forward_cpu};
KernelSlot<ClassLossBwdArgs> class_loss_bwd{"class_loss.bwd", backward_cpu};

Variable cross_entropy(const Variable& logits, const Tensor& labels, double smoothing) {
  const char* op = "cross_entropy";
  check_logits(op, logits);
  check_ids(op, "labels", labels);
  LOWBIT_CHECK(labels.shape() == Shape{logits.size(0)}, shape, op,
               "labels must be [logits.shape[0]] (got logits=", logits.str(), ", labels=", labels.str(), ")");
  LOWBIT_CHECK(smoothing >= 0 && smoothing < 1, value, op, "smoothing must be in [0, 1) (got ", smoothing,
               ")");
  if (!labels.device().is_cuda()) {
    const std::vector<int64_t> y = labels.to_vector<int64_t>();
    for (size_t b = 0; b < y.size(); ++b)
      LOWBIT_CHECK(y[b] >= 0 && y[b] < logits.size(1), value, op, "labels must be in [0, ", logits.size(1),
                   ") (got label ", y[b], " at row ", b, ", logits=", logits.str(), ")");
  }
  return class_loss(op, {.kind = TargetKind::label, .smoothing = smoothing}, logits, labels, {});
}

Variable soft_cross_entropy(const Variable& logits, const Tensor& targets) {
  const char* op = "soft_cross_entropy";
  check_logits(op, logits);
  const Variable t(targets);
  check_same_kind(op, "logits", logits, "targets", t);
  LOWBIT_CHECK(logits.shape() == targets.shape(), shape, op,
               "logits and targets must have one shape (got logits=", logits.str(),
               ", targets=", targets.str(), ")");
  return class_loss(op, {.kind = TargetKind::soft}, logits, targets, {});
}

Variable teacher_cross_entropy(const Variable& logits, const Variable& teacher, double temperature) {
  return teacher_loss("teacher_cross_entropy", logits, teacher, temperature, false);
}

Variable kl_divergence(const Variable& logits, const Variable& teacher, double temperature) {
  return teacher_loss("kl_divergence", logits, teacher, temperature, true);
}

Variable mse(const Variable& a, const Variable& b) {
  check_float("mse", "a", a);
  check_same_kind("mse", "a", a, "b", b);
  LOWBIT_CHECK(a.shape() == b.shape(), shape, "mse", "operands must have one shape (got a=", a.str(),
               ", b=", b.str(), ")");
  return mean(square(sub(a, b)));
}

}  // namespace lowbit
