#include "autograd/ops/layer_norm.h"

#include "autograd/core/node.h"
#include "autograd/ops/check.h"
#include "tensor/engine/column.h"
#include "tensor/engine/row.h"

namespace lowbit {
namespace {

template <class T>
void backward_typed(const LayerNormBwdArgs& a) {
  if (a.dx.data) cpu::rows(a.rows, a.n, LayerNormBwdRow<T>(a));
  if (a.dgamma.data) cpu::columns(a.rows, a.n, LayerNormGainColumn<T>(a), a.dgamma.as<T>(), a.dbeta.as<T>());
}

void forward_cpu(const LayerNormFwdArgs& a, Stream) {
  if (a.x.dtype == DType::f64)
    cpu::rows(a.rows, a.n, LayerNormFwdRow<double>(a));
  else
    cpu::rows(a.rows, a.n, LayerNormFwdRow<float>(a));
}
void backward_cpu(const LayerNormBwdArgs& a, Stream) {
  a.gy.dtype == DType::f64 ? backward_typed<double>(a) : backward_typed<float>(a);
}

int64_t row_count(const Tensor& x) { return x.size(-1) ? x.numel() / x.size(-1) : 0; }

Tensor forward(const Tensor& x, const Tensor& gamma, const Tensor& beta, double eps, Tensor& mean,
               Tensor& rstd) {
  const int64_t rows = row_count(x);
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  mean = Tensor::empty({rows}, x.dtype(), x.device());
  rstd = Tensor::empty({rows}, x.dtype(), x.device());
  layer_norm_fwd({y.mutable_view(), mean.mutable_view(), rstd.mutable_view(), x.view(), gamma.view(),
                  beta.view(), rows, x.size(-1), eps},
                 x.device());
  return y;
}

struct LayerNormNode final : Node {
  Saved x, mean, rstd, gamma, beta;
  double eps = 0;
  const char* name() const override { return "layer_norm"; }
  void backward(const Tensor& gy, GradSink& gx) override {
    const bool gain = gx.wants(1) || gx.wants(2);
    Tensor dx = gx.wants(0) ? gx.alloc(0) : Tensor{};  // [..., C]
    const auto output = [&](int i) {                   // [C]; both are computed when one is wanted
      return gx.wants(i) ? gx.alloc(i)
             : gain      ? Tensor::empty({gy.size(-1)}, gy.dtype(), gy.device())
                         : Tensor{};
    };
    Tensor dgamma = output(1), dbeta = output(2);
    Tensor work = gain ? column_workspace(row_count(gy), gy.size(-1), 2, gy.dtype(), gy.device()) : Tensor{};
    layer_norm_bwd({dx.mutable_view(), dgamma.mutable_view(), dbeta.mutable_view(), gy.view(),
                    x.get(name(), 0).view(), mean.get(name(), 1).view(), rstd.get(name(), 2).view(),
                    gamma.get(name(), 3).view(), work.mutable_view(), row_count(gy), gy.size(-1)},
                   gy.device());
    if (dx.defined()) gx.add(0, dx);
    if (gain) gx.add(1, dgamma), gx.add(2, dbeta);
  }
  bool replays() const override { return true; }
  Tensor replay() const override {
    Tensor m, r;
    return forward(x.get(name(), 0), gamma.get(name(), 3), beta.get(name(), 4), eps, m, r);
  }
  void release() override { x.release(), mean.release(), rstd.release(), gamma.release(), beta.release(); }
  std::vector<Tensor> saved() const override { return {x.peek(), mean.peek(), rstd.peek(), gamma.peek()}; }
};

void check_operands(const Variable& x, const Variable& gamma, const Variable& beta, double eps) {
  const char* op = "layer_norm";
  check_float(op, "x", x);
  check_same_kind(op, "x", x, "gamma", gamma);
  check_same_kind(op, "x", x, "beta", beta);
  LOWBIT_CHECK(x.ndim() > 0 && gamma.shape() == Shape{x.size(-1)} && beta.shape() == gamma.shape(), shape, op,
               "gamma and beta must be [x.shape[-1]] (got x=", x.str(), ", gamma=", gamma.str(),
               ", beta=", beta.str(), ")");
  LOWBIT_CHECK(eps > 0, value, op, "eps must be positive (got ", eps, ")");
}

}  // namespace

KernelSlot<LayerNormFwdArgs> layer_norm_fwd{"layer_norm.fwd", forward_cpu};
KernelSlot<LayerNormBwdArgs> layer_norm_bwd{"layer_norm.bwd", backward_cpu};

Variable layer_norm(const Variable& v, const Variable& gamma, const Variable& beta, double eps) {
  check_operands(v, gamma, beta, eps);
  const Tensor x = v.data().packed(), w = gamma.data().packed(), b = beta.data().packed();
  Tensor mean, rstd;
  Tensor y = forward(x, w, b, eps, mean, rstd);
  auto node = std::make_shared<LayerNormNode>();
  node->x.set(x), node->mean.set(mean), node->rstd.set(rstd), node->gamma.set(w);
  node->beta.set(b), node->eps = eps;
  return record(std::move(y), std::move(node), {v, gamma, beta});
}

}  // namespace lowbit
