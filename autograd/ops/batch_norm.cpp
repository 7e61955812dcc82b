#include "autograd/ops/batch_norm.h"

#include <numeric>

#include "autograd/core/node.h"
#include "autograd/ops/broadcast.h"
#include "autograd/ops/check.h"
#include "autograd/ops/pointwise.h"
#include "autograd/ops/reduce.h"
#include "tensor/engine/column.h"
#include "tensor/engine/pointwise.h"

namespace lowbit {
namespace {

void forward_cpu(const BatchNormFwdArgs& a, Stream) {
  cpu::pointwise({a.y, a.x, a.mean, a.rstd, a.gamma, a.beta}, BatchNormFwd{});
}
void sums_cpu(const BatchNormSumsArgs& a, Stream) {
  dispatch_real(a.x.dtype, [&](auto t) {
    using T = decltype(t);
    cpu::columns(a.rows, a.n, BatchNormSums<T>(a), a.dgamma.as<T>(), a.dbeta.as<T>());
  });
}
void backward_cpu(const BatchNormBwdArgs& a, Stream) {
  cpu::pointwise({a.dx, a.gy, a.x, a.mean, a.rstd, a.gamma, a.dgamma, a.dbeta},
                 BatchNormBwd{a.rows, a.training});
}

void count_cpu(const BatchCountArgs& a, Stream) { ++*a.count; }

int64_t row_count(const Tensor& x) { return x.size(-1) ? x.numel() / x.size(-1) : 0; }

struct BatchNormNode final : Node {
  Saved x, mean, rstd, gamma;
  bool training = false;
  const char* name() const override { return "batch_norm"; }
  void backward(const Tensor& gy, GradSink& gx) override {
    const int64_t rows = row_count(gy), n = gy.size(-1);
    const Tensor &from = x.get(name(), 0), &m = mean.get(name(), 1), &r = rstd.get(name(), 2),
                 &w = gamma.get(name(), 3);
    const auto output = [&](int i) {
      return gx.wants(i) ? gx.alloc(i) : Tensor::empty({n}, gy.dtype(), gy.device());
    };
    Tensor dgamma = output(1), dbeta = output(2),
           work = column_workspace(rows, n, 2, gy.dtype(), gy.device());
    batch_norm_sums({dgamma.mutable_view(), dbeta.mutable_view(), gy.view(), from.view(), m.view(), r.view(),
                     work.mutable_view(), rows, n},
                    gy.device());
    if (gx.wants(0)) {
      Tensor dx = gx.alloc(0);
      const auto wide = [&](const Tensor& t) { return t.expand(gy.shape()); };
      const Tensor columns[] = {wide(m), wide(r), wide(w), wide(dgamma), wide(dbeta)};
      batch_norm_bwd({dx.mutable_view(), gy.view(), from.view(), columns[0].view(), columns[1].view(),
                      columns[2].view(), columns[3].view(), columns[4].view(), rows, training},
                     gy.device());
      gx.add(0, dx);
    }
    if (gx.wants(1)) gx.add(1, dgamma);
    if (gx.wants(2)) gx.add(2, dbeta);
  }
  void release() override { x.release(), mean.release(), rstd.release(), gamma.release(); }
  std::vector<Tensor> saved() const override { return {x.peek(), mean.peek(), rstd.peek(), gamma.peek()}; }
};

/// running ← (1 − momentum)·running + momentum·batch
void follow(Tensor& running, const Variable& batch, double momentum) {
  running.copy_from(add(scale(Variable(running), 1 - momentum), scale(batch, momentum)).data());
}

}  // namespace

KernelSlot<BatchCountArgs> batch_norm_count{"batch_norm.count", count_cpu};
KernelSlot<BatchNormFwdArgs> batch_norm_fwd{"batch_norm.fwd", forward_cpu};
KernelSlot<BatchNormSumsArgs> batch_norm_sums{"batch_norm.sums", sums_cpu};
KernelSlot<BatchNormBwdArgs> batch_norm_bwd{"batch_norm.bwd", backward_cpu};

Variable batch_norm(const Variable& x, const Variable& gamma, const Variable& beta, Tensor& running_mean,
                    Tensor& running_var, bool training, double momentum, double eps) {
  check_float("batch_norm", "x", x);
  check_same_kind("batch_norm", "x", x, "gamma", gamma);
  check_same_kind("batch_norm", "x", x, "beta", beta);
  LOWBIT_CHECK(x.ndim() > 1 && gamma.shape() == Shape{x.size(-1)} && beta.shape() == gamma.shape() &&
                   running_mean.shape() == gamma.shape() && running_var.shape() == gamma.shape(),
               shape, "batch_norm", "parameters must be [C] for x=[..., C] (got x=", x.str(),
               ", gamma=", gamma.str(), ", beta=", beta.str(), ")");
  const Tensor from = x.data().packed(), w = gamma.data().packed();
  const int64_t rows = row_count(from);
  Variable mean(running_mean.clone()), variance(running_var);
  Tensor rstd;
  {
    const NoGrad off;
    if (training) {
      LOWBIT_CHECK(rows > 1, value, "batch_norm",
                   "training needs more than one value per channel (got x=", x.str(), ")");
      std::vector<int> all(size_t(x.ndim()) - 1);
      std::iota(all.begin(), all.end(), 0);
      mean = lowbit::mean(Variable(from), all);
      variance = lowbit::mean(square(sub(Variable(from), mean)), all);
      follow(running_mean, mean, momentum);
      follow(running_var, scale(variance, double(rows) / double(rows - 1)), momentum);
    }
    const Variable one(Tensor::full({1}, 1, x.dtype(), x.device()));
    rstd = div(one, sqrt(add_scalar(variance, eps))).data();
  }
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  const auto wide = [&](const Tensor& t) { return t.expand(x.shape()); };
  const Tensor columns[] = {wide(mean.data()), wide(rstd), wide(w), wide(beta.data())};
  batch_norm_fwd({y.mutable_view(), from.view(), columns[0].view(), columns[1].view(), columns[2].view(),
                  columns[3].view()},
                 x.device());
  auto node = std::make_shared<BatchNormNode>();
  node->x.set(from), node->mean.set(mean.data()), node->rstd.set(rstd), node->gamma.set(w);
  node->training = training;
  return record(std::move(y), std::move(node), {x, gamma, beta});
}

}  // namespace lowbit
