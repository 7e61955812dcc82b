#include "nn/loss/distillation.h"

#include "autograd/core/node.h"
#include "autograd/ops/broadcast.h"
#include "autograd/ops/check.h"
#include "autograd/ops/cross_entropy.h"
#include "autograd/ops/linear.h"
#include "autograd/ops/pointwise.h"
#include "autograd/ops/reduce.h"
#include "autograd/ops/shape.h"
#include "autograd/ops/softmax.h"

namespace lowbit {
namespace {

constexpr double kMasked = -100;

/// x where it is over −100, else 0.
Variable unmasked(const Variable& x) {
  const NoGrad off;
  return clamp(scale(add_scalar(x.detach(), -kMasked), 1e30), 0, 1);  // any float over −100 is so by 1e-6
}

/// The square root has no slope at 0, where the distance has the subgradient 0: what is added makes it so.
Variable norm(const Variable& x) { return sqrt(add_scalar(sum(square(x)), 1e-24)); }

Variable direction(const Variable& x) {
  const Variable kept = mul(x, unmasked(x));
  return div(kept, norm(kept));
}

void check_layers(const char* op, size_t student, size_t teacher) {
  LOWBIT_CHECK(student == teacher && student > 0, value, op,
               "student and teacher must have as many layers, at least one (got ", student, " and ", teacher,
               ")");
}

}  // namespace

Variable distillation_loss(const Variable& cls, const Variable& dist, const Variable& teacher,
                           const Tensor& targets, double smoothing) {
  const Variable soft = teacher_cross_entropy(dist.defined() ? dist : cls, teacher);
  return add(soft, targets.dtype() == DType::i64 ? cross_entropy(cls, targets, smoothing)
                                                 : soft_cross_entropy(cls, targets));
}

Variable direction_distance(const Variable& a, const Variable& b) {
  const char* op = "direction_distance";
  check_float(op, "a", a);
  check_same_kind(op, "a", a, "b", b);
  LOWBIT_CHECK(a.shape() == b.shape(), shape, op, "operands must have one shape (got a=", a.str(),
               ", b=", b.str(), ")");
  return norm(sub(direction(a), direction(b)));
}

Variable score_map(const Variable& x, int64_t heads) { return attention_scores(x, x, heads, 1); }

Variable score_map_loss(std::span<const ScoreMaps> student, std::span<const ScoreMaps> teacher, bool values) {
  check_layers("score_map_loss", student.size(), teacher.size());
  Variable total;
  const auto take = [&](const Variable& s, const Variable& t) {
    const Variable d = direction_distance(s, t);
    total = total.defined() ? add(total, d) : d;
  };
  for (size_t i = 0; i < student.size(); ++i) {
    take(student[i].qq, teacher[i].qq), take(student[i].kk, teacher[i].kk);
    if (values) take(student[i].vv, teacher[i].vv);
  }
  return total;
}

Variable token_loss(std::span<const Variable> student, std::span<const Variable> teacher) {
  check_layers("token_loss", student.size(), teacher.size());
  Variable total;
  for (size_t i = 0; i < student.size(); ++i) {
    const Variable &s = student[i], &t = teacher[i];
    LOWBIT_CHECK(s.ndim() == 3 && t.ndim() == 3 && s.size(1) >= t.size(1), shape, "token_loss",
                 "features must be [batch, tokens, width], the student's with at least the teacher's tokens "
                 "(got student=",
                 s.str(), ", teacher=", t.str(), ")");
    const Variable d = mse(slice(s, 1, s.size(1) - t.size(1), s.size(1)), t);
    total = total.defined() ? add(total, d) : d;
  }
  return scale(total, 1 / double(student.size()));
}

Variable consistency_loss(const Variable& logits, const Tensor& labels, int64_t splits, double smoothing,
                          double alpha) {
  LOWBIT_CHECK(logits.ndim() == 2 && splits > 1 && logits.size(0) % splits == 0, value, "consistency_loss",
               "splits must be at least 2 and divide the batch (got splits=", splits,
               ", logits=", logits.str(), ")");
  const int64_t b = logits.size(0) / splits;
  Variable first, total, mixture;
  const auto take = [](Variable& to, const Variable& x) { to = to.defined() ? add(to, x) : x; };
  std::vector<Variable> p;
  for (int64_t s = 0; s < splits; ++s) {
    const Variable part = slice(logits, 0, s * b, (s + 1) * b), log_p = log_softmax(part);
    if (s == 0) first = part;
    p.push_back(exp(log_p));
    take(total, sum(mul(p.back(), log_p)));
    take(mixture, p.back());
  }
  const Variable log_m = log(clamp(scale(mixture, 1 / double(splits)), 1e-7, 1));
  for (const Variable& one : p) total = sub(total, sum(mul(one, log_m)));
  return add(cross_entropy(first, labels.slice(0, 0, b).packed(), smoothing),
             scale(total, alpha / double(splits * b)));
}

}  // namespace lowbit
