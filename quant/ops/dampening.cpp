#include "quant/ops/dampening.h"

#include "autograd/core/node.h"
#include "autograd/ops/check.h"
#include "quant/ops/mean_abs.h"
#include "tensor/engine/pointwise.h"
#include "tensor/engine/row.h"

namespace lowbit {
namespace {

void forward_cpu(const DampeningFwdArgs& a, Stream) {
  dispatch_real(a.y.dtype, [&]<class T>(T) {
    cpu::rows(a.of.rows, a.of.inner, DampeningFwdRow<T>{a});
    cpu::rows(1, a.of.rows, DampeningFwdTotal<T>{a});
  });
}
void backward_cpu(const DampeningBwdArgs& a, Stream) {
  dispatch_real(a.dw.dtype, [&]<class T>(T) { cpu::rows(a.of.rows, a.of.inner, DampeningBwdRow<T>{a}); });
}

struct DampeningNode final : Node {
  Saved w, w_q, s;
  DampeningArgs call{};
  DampeningArgs arguments() const {
    DampeningArgs a = call;
    a.w = w.get(name(), 0).view(), a.w_q = w_q.get(name(), 1).view(), a.s = s.get(name(), 2).view();
    return a;
  }
  const char* name() const override { return "dampening"; }
  void backward(const Tensor& gy, GradSink& gx) override {
    Tensor dw = gx.alloc(0);
    dampening_bwd({arguments(), dw.mutable_view(), gy.view()}, gy.device());
    gx.add(0, dw);
  }
  void release() override { w.release(), w_q.release(), s.release(); }
  std::vector<Tensor> saved() const override { return {w.peek(), w_q.peek(), s.peek()}; }
};

}  // namespace

constinit KernelSlot<DampeningFwdArgs> dampening_fwd{"dampening.fwd", forward_cpu};
constinit KernelSlot<DampeningBwdArgs> dampening_bwd{"dampening.bwd", backward_cpu};

Variable dampening(const Variable& v, const Tensor& w_q, const Tensor& s, int axis, int lo, int hi) {
  check_float("dampening", "w", v);
  LOWBIT_CHECK(w_q.shape() == v.shape() && w_q.dtype() == v.dtype() && s.dtype() == v.dtype(), shape,
               "dampening", "w_q must be like w, s of its type (got w=", v.str(), ", w_q=", w_q.str(),
               ", s=", s.str(), ")");
  const GroupLayout l = in_rows(group_layout(v.shape(), axis, s.numel(), "dampening"), v.shape());
  auto node = std::make_shared<DampeningNode>();
  node->w.set(v.data().packed()), node->w_q.set(w_q.packed()), node->s.set(s.packed());
  node->call = {{}, {}, {}, l.outer * l.groups, l.groups, l.inner, double(lo), double(hi)};
  Tensor y = Tensor::empty({1}, v.dtype(), v.device());
  Tensor work = Tensor::empty({node->call.rows}, v.dtype(), v.device());
  dampening_fwd({node->arguments(), y.mutable_view(), work.mutable_view()}, v.device());
  return record(std::move(y), std::move(node), {v});
}

}  // namespace lowbit
