#include "autograd/ops/shift.h"

#include "autograd/core/node.h"
#include "autograd/ops/broadcast.h"
#include "autograd/ops/reduce.h"

namespace lowbit {
namespace {

Tensor sum_of(const Tensor& x, const Tensor& b) {
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  add_fwd({y.mutable_view(), x.view(), b.expand(x.shape()).view()}, x.device());
  return y;
}

struct ShiftNode final : Node {
  SavedValue x;
  Tensor b;  // a private copy; undefined where the sum cannot be made again
  const char* name() const override { return "shift"; }
  void backward(const Tensor& gy, GradSink& gx) override {
    gx.add(0, gy);
    if (gx.wants(1)) gx.add(1, reduce_to(gy, inputs[1]->shape));
  }
  bool replays() const override { return b.defined(); }
  Tensor replay() const override {
    const Tensor from = x.get(name(), 0);
    Tensor y =
        from.storage().use_count() == 1 ? from : Tensor::empty(from.shape(), from.dtype(), from.device());
    add_fwd({y.mutable_view(), from.view(), b.expand(from.shape()).view()}, from.device());
    return y;
  }
  void release() override { x.release(), b = Tensor{}; }
  std::vector<Tensor> saved() const override { return {b}; }
};

/// The offset of codes of this shape that b is; undefined for other shapes.
Tensor offset_of(const Shape& x, const Tensor& b) {
  const Shape& s = b.shape();
  if (s == Shape{x[-1]}) return b.clone();
  if (s.ndim() == 3 && x.ndim() >= 3 && s == Shape{x[-3], 1, x[-1]}) return b.clone().reshape({s[0], s[2]});
  return {};
}

}  // namespace

Variable shift(const Variable& x, const Variable& b) {
  LOWBIT_CHECK(broadcast_shapes("shift", x.shape(), b.shape()) == x.shape(), shape, "shift",
               "b must broadcast to x (got x=", x.str(), ", b=", b.str(), ")");
  const std::shared_ptr<ShiftNode> node = needs_grad({x, b}) ? std::make_shared<ShiftNode>() : nullptr;
  const Coded* c = x.coded();
  if (Tensor offset = c && !c->offset.defined() ? offset_of(x.shape(), b.data()) : Tensor{};
      offset.defined()) {
    Coded y = *c;
    y.offset = offset;
    return record(std::move(y), node, {x, b});
  }
  if (node && !c && can_replay(x)) node->x.set(x), node->b = b.data().clone();
  return record(sum_of(x.data(), b.data()), node, {x, b});
}

}  // namespace lowbit
