#pragma once
#include "tensor/core/kernel_slot.h"
#include "tensor/core/tensor.h"
#include "tensor/hd/macros.h"
#include "tensor/hd/row.h"

namespace lowbit {

class Variable;

/// y = (x − mean)·rstd·gamma + beta.   Views of one shape; those of the parameters repeat along the rows.
struct BatchNormFwdArgs {
  View y, x, mean, rstd, gamma, beta;
};
/// Packed: gy, x [rows, n]; sums of gy·x̂ and gy per column [n].   work: column_workspace of two sums
struct BatchNormSumsArgs {
  View dgamma, dbeta, gy, x, mean, rstd, work;
  int64_t rows, n;
};
/// dx from those sums; `training`: through the statistics too. Views of one shape, as in the forward.
struct BatchNormBwdArgs {
  View dx, gy, x, mean, rstd, gamma, dgamma, dbeta;
  int64_t rows;
  bool training;
};

struct BatchNormFwd {
  template <class T>
  LOWBIT_HD T operator()(T x, T mean, T rstd, T gamma, T beta) const {
    return (x - mean) * rstd * gamma + beta;
  }
};
template <class T>
struct BatchNormSums {
  const T *gy, *x, *mean, *rstd;
  int64_t n;
  explicit BatchNormSums(const BatchNormSumsArgs& a)
      : gy(a.gy.as<T>()), x(a.x.as<T>()), mean(a.mean.as<T>()), rstd(a.rstd.as<T>()), n(a.n) {}
  LOWBIT_HD Pack<T, 2> operator()(int64_t m, int64_t i) const {
    const T g = gy[m * n + i];
    return {{g * ((x[m * n + i] - mean[i]) * rstd[i]), g}};
  }
};
struct BatchNormBwd {
  int64_t rows;
  bool training;
  template <class T>
  LOWBIT_HD T operator()(T gy, T x, T mean, T rstd, T gamma, T dgamma, T dbeta) const {
    const T through = (dbeta + (x - mean) * rstd * dgamma) / T(rows);
    return gamma * rstd * (training ? gy - through : gy);
  }
};
/// *count += 1, of the batches that have moved the running statistics.
struct BatchCountArgs {
  int64_t* count;
};
extern KernelSlot<BatchCountArgs> batch_norm_count;
extern KernelSlot<BatchNormFwdArgs> batch_norm_fwd;
extern KernelSlot<BatchNormSumsArgs> batch_norm_sums;
extern KernelSlot<BatchNormBwdArgs> batch_norm_bwd;

/// Normalisation per channel, the last dimension, over all others: y = (x − mean)·rstd·gamma + beta,
/// rstd = 1/√(var + eps). With `training`, mean and variance (biased) are those of x and the running ones
/// move towards them:  running ← (1 − momentum)·running + momentum·batch,  the variance unbiased.
/// Otherwise they are the running ones.
/// Shapes  x, y [..., C];  gamma, beta, running mean and variance [C]
/// Grad    dgamma = Σ gy·x̂,  dbeta = Σ gy over the rows,  x̂ = (x − mean)·rstd
///         dx = gamma·rstd·gy,  training: gamma·rstd·(gy − (dbeta + x̂·dgamma)/rows)
/// Saves   x (shared), gamma (shared), mean, rstd
/// Order   all sums: column rule (docs/numerics.md, rule 4)
/// Source  Ioffe & Szegedy 2015
/// Errors  shape: parameters;  dtype, device: operands differ;  value: training on one value per channel
Variable batch_norm(const Variable& x, const Variable& gamma, const Variable& beta, Tensor& running_mean,
                    Tensor& running_var, bool training, double momentum, double eps);

}  // namespace lowbit
