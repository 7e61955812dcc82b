#include "autograd/ops/layer_norm.h"

#include "autograd/core/node.h"
#include "autograd/ops/check.h"
#include "autograd/ops/deferred.h"
#include "tensor/engine/column.h"
#include "tensor/engine/row.h"

namespace lowbit {
namespace {

template <class T, class X = T>
void backward_typed(const LayerNormBwdArgs& a) {
  if (a.dx.data) cpu::rows(a.rows, a.n, LayerNormBwdRow<T, X>(a));
  if (a.dgamma.data)
    cpu::columns(a.rows, a.n, LayerNormGainColumn<T, X>(a), a.dgamma.as<T>(), a.dbeta.as<T>());
}

void forward_cpu(const LayerNormFwdArgs& a, Stream) {
  if (a.x.dtype == DType::f64)
    cpu::rows(a.rows, a.n, LayerNormFwdRow<double>(a));
  else if (a.x.dtype == DType::bf16)
    cpu::rows(a.rows, a.n, LayerNormFwdRow<float, bf16>(a));
  else
    cpu::rows(a.rows, a.n, LayerNormFwdRow<float>(a));
}
void backward_cpu(const LayerNormBwdArgs& a, Stream) {
  if (a.gy.dtype == DType::f64)
    backward_typed<double>(a);
  else if (a.x.dtype == DType::bf16)
    backward_typed<float, bf16>(a);
  else
    backward_typed<float>(a);
}

int64_t row_count(const Tensor& x) { return x.size(-1) ? x.numel() / x.size(-1) : 0; }

std::shared_ptr<DeferredLayerNorm> prepared(const Tensor& x, const Tensor& gamma, const Tensor& beta,
                                            double eps) {
  auto n = std::make_shared<DeferredLayerNorm>();
  n->x = x, n->gamma = gamma, n->beta = beta, n->eps = eps;
  n->mean = Tensor::empty({row_count(x)}, gamma.dtype(), x.device());
  n->rstd = Tensor::empty({row_count(x)}, gamma.dtype(), x.device());
  n->mean_view = n->mean.mutable_view(), n->rstd_view = n->rstd.mutable_view();
  return n;
}

struct LayerNormNode final : Node {
  Saved x, mean, rstd, gamma, beta;
  double eps = 0;
  std::shared_ptr<const DeferredLayerNorm> later;  // of the forward
  const char* name() const override { return "layer_norm"; }
  void backward(const Tensor& gy, GradSink& gx) override {
    const bool gain = gx.wants(1) || gx.wants(2);
    if (later && !later->computed) later->values();  // nobody has asked for the output
    const Tensor before = gx.take(0);                // of the residual stream, to which dx is added
    Tensor dx = gx.wants(0) ? gradient_over(before, gx, 0) : Tensor{};  // [..., C]
    const auto output = [&](int i) {  // [C]; both are computed when one is wanted
      return gx.wants(i) ? gx.alloc(i)
             : gain      ? Tensor::empty({gy.size(-1)}, gy.dtype(), gy.device())
                         : Tensor{};
    };
    Tensor dgamma = output(1), dbeta = output(2);
    Tensor work = gain ? column_workspace(row_count(gy), gy.size(-1), 2, gy.dtype(), gy.device()) : Tensor{};
    layer_norm_bwd(
        {dx.mutable_view(), dgamma.mutable_view(), dbeta.mutable_view(), gy.view(), x.get(name(), 0).view(),
         mean.get(name(), 1).view(), rstd.get(name(), 2).view(), gamma.get(name(), 3).view(), before.view(),
         work.mutable_view(), row_count(gy), gy.size(-1)},
        gy.device());
    if (dx.defined()) gx.add(0, dx);
    if (gain) gx.add(1, dgamma), gx.add(2, dbeta);
  }
  bool replays() const override { return true; }
  Tensor replay() const override {
    return prepared(x.get(name(), 0), gamma.get(name(), 3), beta.get(name(), 4), eps)->values();
  }
  void release() override {
    x.release(), mean.release(), rstd.release(), gamma.release(), beta.release(), later.reset();
  }
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

LayerNormFwdArgs DeferredLayerNorm::args() const {
  computed = true;
  return {{}, mean_view, rstd_view, x.view(), gamma.view(), beta.view(), row_count(x), x.size(-1), eps};
}
Tensor DeferredLayerNorm::values() const {
  Tensor y = Tensor::empty(x.shape(), gamma.dtype(), x.device());
  LayerNormFwdArgs a = args();
  a.y = y.mutable_view();
  layer_norm_fwd(a, x.device());
  return y;
}

KernelSlot<LayerNormFwdArgs> layer_norm_fwd{"layer_norm.fwd", forward_cpu};
KernelSlot<LayerNormBwdArgs> layer_norm_bwd{"layer_norm.bwd", backward_cpu};

Variable layer_norm(const Variable& v, const Variable& gamma, const Variable& beta, double eps) {
  check_operands(v, gamma, beta, eps);
  const Tensor x = v.stored().packed(), w = gamma.data().packed(), b = beta.data().packed();
  auto later = prepared(x, w, b, eps);
  auto node = std::make_shared<LayerNormNode>();
  node->x.set(x), node->mean.set(later->mean), node->rstd.set(later->rstd), node->gamma.set(w);
  node->beta.set(b), node->eps = eps, node->later = later;
  if (x.device().is_cuda() && v.dtype() == DType::f32 && may_defer())  // on the CPU one pass is no gain
    return record(std::move(later), x.shape(), x.device(), std::move(node), {v, gamma, beta});
  return record(later->values(), std::move(node), {v, gamma, beta});
}

}  // namespace lowbit
