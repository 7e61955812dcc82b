#include "autograd/ops/broadcast.h"

#include "autograd/core/node.h"
#include "autograd/ops/check.h"
#include "autograd/ops/reduce.h"
#include "tensor/engine/pointwise.h"

namespace lowbit {
namespace {

template <class F>
void forward_cpu(const BinaryFwdArgs<F>& a, Stream) {
  cpu::pointwise({a.y, a.a, a.b}, BinaryFwd<F>{});
}
template <class F>
void backward_cpu(const BinaryBwdArgs<F>& a, Stream) {
  cpu::pointwise({a.d, a.gy, a.a, a.b}, BinaryBwd<F>{a.side});
}

template <class F>
struct BinaryNode final : Node {
  const char* op;
  const KernelSlot<BinaryBwdArgs<F>>* kernel;
  Saved a, b;  // set only when F::saves
  BinaryNode(const char* name, const KernelSlot<BinaryBwdArgs<F>>* bwd) : op(name), kernel(bwd) {}
  const char* name() const override { return op; }
  void backward(const Tensor& gy, GradSink& gx) override {
    for (int side : {0, 1}) {
      if (!gx.wants(side)) continue;
      const Shape& shape = inputs[size_t(side)]->shape;
      if (F::passes(side)) {
        gx.add(side, reduce_to(gy, shape));
        continue;
      }
      Tensor d = shape == gy.shape() ? gx.alloc(side) : Tensor::empty(gy.shape(), gy.dtype(), gy.device());
      const View va = F::saves ? a.get(op, 0).expand(gy.shape()).view() : gy.view();
      const View vb = F::saves ? b.get(op, 1).expand(gy.shape()).view() : gy.view();
      (*kernel)({d.mutable_view(), gy.view(), va, vb, side}, gy.device());
      gx.add(side, reduce_to(d, shape));
    }
  }
  void release() override { a.release(), b.release(); }
  std::vector<Tensor> saved() const override { return {a.peek(), b.peek()}; }
};

template <class F>
Variable binary(const char* op, const KernelSlot<BinaryFwdArgs<F>>& fwd,
                const KernelSlot<BinaryBwdArgs<F>>& bwd, const Variable& a, const Variable& b) {
  check_float(op, "a", a);
  check_same_kind(op, "a", a, "b", b);
  const Shape shape = broadcast_shapes(op, a.shape(), b.shape());
  Tensor y = Tensor::empty(shape, a.dtype(), a.device());
  fwd({y.mutable_view(), a.data().expand(shape).view(), b.data().expand(shape).view()}, a.device());
  auto node = std::make_shared<BinaryNode<F>>(op, &bwd);
  if (F::saves) node->a.set(a.data()), node->b.set(b.data());
  return record(std::move(y), std::move(node), {a, b});
}

}  // namespace

#define LOWBIT_DEFINE_BINARY(F, name)                                     \
  KernelSlot<BinaryFwdArgs<F>> name##_fwd{#name ".fwd", forward_cpu<F>};  \
  KernelSlot<BinaryBwdArgs<F>> name##_bwd{#name ".bwd", backward_cpu<F>}; \
  Variable name(const Variable& a, const Variable& b) { return binary(#name, name##_fwd, name##_bwd, a, b); }
LOWBIT_BINARY_LIST(LOWBIT_DEFINE_BINARY)

}  // namespace lowbit
