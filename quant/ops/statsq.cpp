#include "quant/ops/statsq.h"

#include "autograd/core/node.h"
#include "autograd/ops/check.h"
#include "tensor/core/context.h"
#include "tensor/engine/pointwise.h"

namespace lowbit {
namespace {

void forward_cpu(const StatsqArgs& a, Stream) {
  if (a.y.dtype == DType::i8)
    cpu::pointwise_typed<1, false, int8_t, float, float>({a.y, a.w, a.step}, StatsqLevel<float>{float(a.n)});
  else
    dispatch_real(a.y.dtype, [&]<class T>(T) {
      cpu::pointwise_typed<1, false, T, T, T>({a.y, a.w, a.step}, StatsqValue<T>{T(a.n)});
    });
}

struct StatsqNode final : Node {
  const char* name() const override { return "statsq"; }
  void backward(const Tensor& gy, GradSink& gx) override { gx.add(0, gy); }
  void release() override {}
  std::vector<Tensor> saved() const override { return {}; }
};

}  // namespace

constinit KernelSlot<StatsqArgs> statsq_fwd{"statsq.fwd", forward_cpu};

Variable statsq(const Variable& v, int bits, std::string_view name, Tensor* scale) {
  check_float("statsq", "w", v);
  LOWBIT_CHECK(v.ndim() >= 2 && v.ndim() <= 4, shape, "statsq",
               "w must have two to four dimensions (got w=", v.str(), ")");
  LOWBIT_CHECK(bits >= 1 && bits <= 8, value, "statsq", "bits must lie in [1, 8] (got ", bits, ")");
  const Tensor w = v.data().packed();
  const GroupLayout l = group_layout(w.shape(), -2, w.size(-2), name);
  const int n = 1 << (bits - 1);
  const Tensor step = finite_mean_abs(w, l, name, 2.0 / n);
  if (scale) *scale = step;
  auto node = needs_grad({v}) ? std::make_shared<StatsqNode>() : nullptr;
  const bool coded = w.dtype() == DType::f32 && context().integer_products;
  Tensor y = Tensor::empty(w.shape(), coded ? DType::i8 : w.dtype(), w.device());
  const Shape grouped{l.outer, l.groups, l.inner};
  statsq_fwd({y.reshape(grouped).mutable_view(), w.reshape(grouped).view(),
              step.reshape({1, l.groups, 1}).expand(grouped).view(), n},
             w.device());
  if (!coded) return record(std::move(y), std::move(node), {v});
  Coded c;
  c.codes = y, c.scale = step, c.scale_axis = -2, c.shift = 0.5;
  c.lo = bits == 1 ? -2 : -n, c.hi = n - 1;  // the published clamp lets one bit reach −2
  return record(std::move(c), std::move(node), {v});
}

}  // namespace lowbit
