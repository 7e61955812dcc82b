#pragma once
// Losses over classes. Every one is, per row, Σ_i w_i·(log Σ_j e^{z_j} − z_i) for a weight vector w that
// comes from a label, a soft label or a teacher; so there is one forward and one backward kernel, written
// over a weight functor.

#include "tensor/core/kernel_slot.h"
#include "tensor/core/tensor.h"
#include "tensor/hd/macros.h"
#include "tensor/hd/math.h"
#include "tensor/hd/row.h"

namespace lowbit {

class Variable;

enum class TargetKind : uint8_t { label, soft, teacher };

/// logits, target, gradients packed [rows, n]; labels i64 [rows]; loss [rows].
struct ClassLossOptions {
  TargetKind kind = TargetKind::label;
  int64_t rows = 0, n = 0;
  double smoothing = 0, temperature = 1;
  bool subtract_entropy = false;
};
struct ClassLossFwdArgs {
  ClassLossOptions o;
  View loss, logits, target;
};
/// The log-sum-exps are computed again: a row is in the cache when it is read for its gradient.
/// dtarget.data is null unless the teacher wants a gradient; so is dlogits.data. gy [1] is the gradient of
/// the mean.
struct ClassLossBwdArgs {
  ClassLossOptions o;
  View dlogits, dtarget, gy, logits, target;
};
/// log-sum-exp of a row in two parts, so that nothing is lost when the maximum is large.
template <class T>
struct LogSumExp {
  T max, sum;  ///< Σ e^{z/t} = sum · e^{max}
};

struct ClassLossMath {
  template <class T>
  struct Label {
    int32_t label;
    T at_label, elsewhere;
    LOWBIT_HD T operator()(int64_t i) const { return int32_t(i) == label ? at_label : elsewhere; }
  };
  template <class T>
  struct Soft {
    const T* p;
    LOWBIT_HD T operator()(int64_t i) const { return p[i]; }
  };
  template <class T>
  struct Teacher {  // softmax of the teacher's logits
    const T* z;
    T temperature;
    LogSumExp<T> l;
    LOWBIT_HD T operator()(int64_t i) const { return math::exp(z[i] / temperature - l.max) / l.sum; }
  };

  template <class T, class Row>
  LOWBIT_HD static LogSumExp<T> log_sum_exp(const Row& row, const T* z, int64_t n, T temperature) {
    const T m = row.max(n, [=](int64_t i) { return z[i] / temperature; });
    return {m, row.sum(n, [=](int64_t i) { return math::exp(z[i] / temperature - m); })};
  }
  template <class T>
  LOWBIT_HD static Label<T> label(const ClassLossOptions& o, const void* target, int64_t r) {
    const T all = T(o.smoothing / double(o.n));
    return {int32_t(static_cast<const int64_t*>(target)[r]), T(1 - o.smoothing) + all, all};
  }
  template <class T>
  LOWBIT_HD static Soft<T> soft(const ClassLossOptions& o, const void* target, int64_t r) {
    return {static_cast<const T*>(target) + r * o.n};
  }
  template <class T, class Row>
  LOWBIT_HD static Teacher<T> teacher(const Row& row, const ClassLossOptions& o, const void* target,
                                      int64_t r) {
    const T* const z = static_cast<const T*>(target) + r * o.n;
    return {z, T(o.temperature), log_sum_exp(row, z, o.n, T(o.temperature))};
  }

  /// Σ w·(log Σ e^{z/t} − z/t). With the teacher as its own student this is its entropy.
  template <class T, class Row, class Weight>
  LOWBIT_HD static T loss(const Row& row, const T* z, int64_t n, T temperature, LogSumExp<T> l, Weight w) {
    const T log_sum = math::log(l.sum);
    return row.sum(n, [=](int64_t i) { return w(i) * (log_sum - (z[i] / temperature - l.max)); });
  }
  /// dz_i = factor/t·(softmax(z/t)_i·total − w_i),  total = Σ w
  template <class T, class Row, class Weight>
  LOWBIT_HD static void backward(const Row& row, T* dz, const T* z, int64_t n, T temperature, LogSumExp<T> l,
                                 T factor, T total, Weight w) {
    row.for_each(n, [=](int64_t i) {
      const T p = math::exp(z[i] / temperature - l.max) / l.sum;
      dz[i] = factor * (p * total - w(i)) / temperature;
    });
  }
  /// dt_i = factor/t·q_i·(c_i − Σ q·c),  c = −log softmax(z/t), for KL plus log q
  template <class T, class Row>
  LOWBIT_HD static void backward_teacher(const Row& row, T* dt, const T* z, int64_t n, T temperature,
                                         LogSumExp<T> l, T factor, Teacher<T> q, bool entropy) {
    const T log_sum = math::log(l.sum), log_sum_q = math::log(q.l.sum);
    const T minus_q = entropy ? T(1) : T(0);  // a factor, not a branch: the loop must vectorise
    const auto c = [=](int64_t i) {
      const T cross = log_sum - (z[i] / temperature - l.max);
      return cross - minus_q * (log_sum_q - (q.z[i] / temperature - q.l.max));
    };
    const T mean = row.sum(n, [=](int64_t i) { return q(i) * c(i); });
    row.for_each(n, [=](int64_t i) { dt[i] = factor * q(i) * (c(i) - mean) / temperature; });
  }
};

template <class T>
struct ClassLossFwdRow {
  T* loss;
  const T* logits;
  const void* target;
  ClassLossOptions o;
  explicit ClassLossFwdRow(const ClassLossFwdArgs& a)
      : loss(a.loss.as<T>()), logits(a.logits.as<T>()), target(a.target.data), o(a.o) {}
  template <class Row>
  LOWBIT_HD void operator()(const Row& row, int64_t r) const {
    const T* const z = logits + r * o.n;
    const T t = T(o.temperature);
    const LogSumExp<T> l = ClassLossMath::log_sum_exp(row, z, o.n, t);
    T value;
    if (o.kind == TargetKind::label) {
      value = ClassLossMath::loss(row, z, o.n, t, l, ClassLossMath::label<T>(o, target, r));
    } else if (o.kind == TargetKind::soft) {
      value = ClassLossMath::loss(row, z, o.n, t, l, ClassLossMath::soft<T>(o, target, r));
    } else {
      const auto q = ClassLossMath::teacher<T>(row, o, target, r);
      value = ClassLossMath::loss(row, z, o.n, t, l, q);
      if (o.subtract_entropy) value -= ClassLossMath::loss(row, q.z, o.n, t, q.l, q);
    }
    T* const out = loss + r;
    row.once([=] { *out = value; });
  }
};

template <class T>
struct ClassLossBwdRow {
  T *dlogits, *dtarget;
  const T *gy, *logits;
  const void* target;
  ClassLossOptions o;
  explicit ClassLossBwdRow(const ClassLossBwdArgs& a)
      : dlogits(a.dlogits.as<T>()),
        dtarget(a.dtarget.as<T>()),
        gy(a.gy.as<T>()),
        logits(a.logits.as<T>()),
        target(a.target.data),
        o(a.o) {}
  template <class Row>
  LOWBIT_HD void operator()(const Row& row, int64_t r) const {
    const T* const z = logits + r * o.n;
    T* const dz = dlogits ? dlogits + r * o.n : nullptr;
    const T t = T(o.temperature), factor = *gy / T(o.rows);
    const LogSumExp<T> l = ClassLossMath::log_sum_exp(row, z, o.n, t);
    if (o.kind == TargetKind::label) {
      ClassLossMath::backward(row, dz, z, o.n, t, l, factor, T(1), ClassLossMath::label<T>(o, target, r));
    } else if (o.kind == TargetKind::soft) {
      const auto w = ClassLossMath::soft<T>(o, target, r);
      const T total = row.sum(o.n, [=](int64_t i) { return w(i); });
      ClassLossMath::backward(row, dz, z, o.n, t, l, factor, total, w);
    } else {
      const auto q = ClassLossMath::teacher<T>(row, o, target, r);
      if (dz) ClassLossMath::backward(row, dz, z, o.n, t, l, factor, T(1), q);
      if (dtarget)
        ClassLossMath::backward_teacher(row, dtarget + r * o.n, z, o.n, t, l, factor, q, o.subtract_entropy);
    }
  }
};

extern KernelSlot<ClassLossFwdArgs> class_loss_fwd;
extern KernelSlot<ClassLossBwdArgs> class_loss_bwd;

/// Cross entropy with class labels: L = 1/B Σ_b (1−s)·(−log p_b[y_b]) + s·mean_k(−log p_b[k]),
/// p = softmax(z).
/// Shapes  logits [B, C];  labels i64 [B];  L [1];  smoothing 0 ≤ s < 1
/// Grad    dz = gy/B·(p − (1−s)·onehot(y) − s/C)
/// Saves   logits (shared), labels
/// Order   rows by the row rule, then the mean over B by the row rule
/// Source  Szegedy et al. 2016; timm LabelSmoothingCrossEntropy
/// Errors  shape: logits, labels;  dtype: labels;  value: smoothing; a label outside [0, C), on a device when
///         the host next reads
Variable cross_entropy(const Variable& logits, const Tensor& labels, double smoothing = 0);

/// Cross entropy with soft labels: L = −1/B Σ_b Σ_c w_bc·log p_bc. The rows of w need not sum to 1.
/// Shapes  logits, targets [B, C];  L [1]
/// Grad    dz = gy/B·(p·Σ_c w − w);  none for the targets
/// Saves   logits (shared), targets (shared)    Order  as cross_entropy
/// Source  Shen et al. 2021 (FKD), Soft_CrossEntropy
/// Errors  shape, dtype, device: logits and targets differ
Variable soft_cross_entropy(const Variable& logits, const Tensor& targets);

/// Cross entropy against a teacher: q = softmax(t/T), p = softmax(z/T), L = −1/B Σ q·log p. No factor T².
/// Shapes  logits z, teacher t [B, C];  L [1];  temperature T > 0
/// Grad    dz = gy/(B·T)·(p − q);  dt_i = gy/(B·T)·q_i·(c_i − Σ q·c),  c = −log p
/// Saves   logits, teacher (both shared)    Order  as cross_entropy
/// Source  Hinton et al. 2015; DistributionLoss of the published quantization codes
/// Errors  shape, dtype, device: operands differ;  value: temperature
Variable teacher_cross_entropy(const Variable& logits, const Variable& teacher, double temperature = 1);

/// The same minus the teacher's entropy: L = 1/B Σ q·log(q/p), zero when both agree.    Grad  c = log q − log
/// p
Variable kl_divergence(const Variable& logits, const Variable& teacher, double temperature = 1);

/// Mean squared difference, shape [1].    Grad  da = 2·gy·(a − b)/count    Errors  shape, dtype, device
/// differ
Variable mse(const Variable& a, const Variable& b);

}  // namespace lowbit
