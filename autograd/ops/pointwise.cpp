#include "autograd/ops/pointwise.h"

#include "autograd/core/node.h"
#include "autograd/ops/check.h"
#include "autograd/ops/deferred.h"
#include "tensor/engine/pointwise.h"

namespace lowbit {
namespace {

template <class F>
void forward_cpu(const UnaryFwdArgs<F>& a, Stream) {
  if (a.x.dtype == DType::bf16)
    cpu::pointwise_typed<1, false, float, bf16>({a.y, a.x}, UnaryFwd<F>{a.f});
  else
    cpu::pointwise({a.y, a.x}, UnaryFwd<F>{a.f});
}
template <class F>
void backward_cpu(const UnaryBwdArgs<F>& a, Stream) {
  if constexpr (F::saves == Saves::nothing)
    cpu::pointwise({a.dx, a.gy}, UnaryBwd<F>{a.f});
  else if (a.saved.dtype == DType::bf16)
    cpu::pointwise_typed<1, false, float, float, bf16>({a.dx, a.gy, a.saved}, UnaryBwd<F>{a.f});
  else
    cpu::pointwise({a.dx, a.gy, a.saved}, UnaryBwd<F>{a.f});
}

template <class F>
struct UnaryNode final : Node {
  F f;
  const char* op;
  const KernelSlot<UnaryFwdArgs<F>>* forward;
  const KernelSlot<UnaryBwdArgs<F>>* kernel;
  SavedValue value;
  UnaryNode(F functor, const char* name, const KernelSlot<UnaryFwdArgs<F>>* fwd,
            const KernelSlot<UnaryBwdArgs<F>>* bwd)
      : f(functor), op(name), forward(fwd), kernel(bwd) {}
  const char* name() const override { return op; }
  void backward(const Tensor& gy, GradSink& gx) override {
    if (!gx.wants(0)) return;
    const Tensor saved = F::saves == Saves::nothing ? Tensor{} : value.stored(op, 0);
    Tensor dx = gradient_over(saved, gx, 0);
    (*kernel)({f, dx.mutable_view(), gy.view(), saved.view()}, gy.device());
    gx.add(0, dx);
  }
  bool replays() const override { return F::saves == Saves::input; }
  Tensor replay() const override {
    const Tensor x = value.get(op, 0);
    Tensor y = x.storage().use_count() == 1 ? x : Tensor::empty(x.shape(), x.dtype(), x.device());
    (*forward)({f, y.mutable_view(), x.view()}, x.device());
    return y;
  }
  void release() override { value.release(); }
  std::vector<Tensor> saved() const override { return {value.peek()}; }
};

template <class F>
Variable unary(const char* op, F f, const KernelSlot<UnaryFwdArgs<F>>& fwd,
               const KernelSlot<UnaryBwdArgs<F>>& bwd, const Variable& v) {
  check_float(op, "x", v);
  auto node = std::make_shared<UnaryNode<F>>(f, op, &fwd, &bwd);
  if (F::saves == Saves::input) node->value.set(v);
  if constexpr (std::is_same_v<F, pointwise::Gelu>)
    if (v.dtype() == DType::f32 && may_defer()) {
      auto later = std::make_shared<DeferredGelu>();
      later->x = v;
      return record(std::move(later), v.shape(), v.device(), std::move(node), {v});
    }
  const Tensor& x = v.stored();
  Tensor y = Tensor::empty(x.shape(), v.dtype(), x.device());
  fwd({f, y.mutable_view(), x.view()}, x.device());
  if (F::saves == Saves::output) node->value.set(Variable(y));
  return record(y, node, {v});
}

}  // namespace

Tensor DeferredGelu::values() const {
  const Tensor& from = x.stored();
  Tensor y = Tensor::empty(from.shape(), x.dtype(), from.device());
  gelu_fwd({pointwise::Gelu{}, y.mutable_view(), from.view()}, from.device());
  return y;
}

#define LOWBIT_DEFINE_UNARY_SLOTS(F, name)                              \
  KernelSlot<UnaryFwdArgs<F>> name##_fwd{#name ".fwd", forward_cpu<F>}; \
  KernelSlot<UnaryBwdArgs<F>> name##_bwd{#name ".bwd", backward_cpu<F>};
LOWBIT_UNARY_LIST(LOWBIT_DEFINE_UNARY_SLOTS)
LOWBIT_UNARY_PARAMETER_LIST(LOWBIT_DEFINE_UNARY_SLOTS)

#define LOWBIT_DEFINE_UNARY(F, name) \
  Variable name(const Variable& x) { return unary(#name, F{}, name##_fwd, name##_bwd, x); }
LOWBIT_UNARY_LIST(LOWBIT_DEFINE_UNARY)

Variable scale(const Variable& x, double factor) {
  return unary("scale", pointwise::Scale{factor}, scale_fwd, scale_bwd, x);
}
Variable add_scalar(const Variable& x, double addend) {
  return unary("add_scalar", pointwise::AddScalar{addend}, add_scalar_fwd, add_scalar_bwd, x);
}
Variable clamp(const Variable& x, double lo, double hi) {
  LOWBIT_CHECK(lo <= hi, value, "clamp", "lo must not exceed hi (got lo=", lo, ", hi=", hi, ")");
  return unary("clamp", pointwise::Clamp{lo, hi}, clamp_fwd, clamp_bwd, x);
}

}  // namespace lowbit
