#include "quant/ops/binary.h"

#include "autograd/core/node.h"
#include "autograd/ops/check.h"
#include "tensor/core/context.h"
#include "tensor/engine/pointwise.h"

namespace lowbit {
namespace {

void forward_cpu(const BinarizeFwdArgs& a, Stream) {
  if (a.y.dtype == DType::i8)
    cpu::pointwise_typed<1, false, int8_t, float>({a.y, a.x}, binary::Sign{});
  else
    cpu::pointwise({a.y, a.x, a.s}, binary::Forward{});
}
void far_sign_cpu(const FarSignArgs& a, Stream) { cpu::pointwise({a.y, a.x}, binary::FarSign{}); }
void backward_cpu(const BinarizeBwdArgs& a, Stream) { cpu::pointwise({a.dx, a.gy, a.x}, binary::Backward{}); }

struct BinaryNode final : Node {
  SavedValue x;
  const char* name() const override { return "binarize"; }
  void backward(const Tensor& gy, GradSink& gx) override {
    const Tensor value = x.get(name(), 0);
    Tensor dx = gradient_over(value, gx, 0);
    binary_bwd({dx.mutable_view(), gy.view(), value.view()}, gy.device());
    gx.add(0, dx);
  }
  void release() override { x.release(); }
  std::vector<Tensor> saved() const override { return {x.peek()}; }
};

}  // namespace

constinit KernelSlot<BinarizeFwdArgs> binary_fwd{"binarize.fwd", forward_cpu};
constinit KernelSlot<FarSignArgs> far_sign{"far_sign", far_sign_cpu};
constinit KernelSlot<BinarizeBwdArgs> binary_bwd{"binarize.bwd", backward_cpu};

Variable binarize(const Variable& v, const GroupLayout& l, std::string_view name, Tensor* scale) {
  check_float("binarize", "x", v);
  const Tensor x = v.data().packed(), s = finite_mean_abs(x, l, name);
  if (scale) *scale = s;
  std::shared_ptr<BinaryNode> node;
  if (needs_grad({v})) {
    node = std::make_shared<BinaryNode>();
    node->x.set(v);
  }
  const bool of_sample = l.columns == 1 && l.outer == 1 && l.groups == x.size(0);
  if ((l.scales() == 1 || of_sample) && x.dtype() == DType::f32 && context().integer_products) {
    Coded c;
    c.codes = Tensor::empty(x.shape(), DType::i8, x.device());
    c.scale = s, c.lo = -1, c.hi = 1;
    if (l.scales() > 1) c.scale_axis = -x.ndim();
    binary_fwd({c.codes.mutable_view(), x.view(), {}}, x.device());
    return record(std::move(c), std::move(node), {v});
  }
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  const Shape grouped{l.groups, l.inner, l.columns};  // outer = 1
  binary_fwd({y.reshape(grouped).mutable_view(), x.reshape(grouped).view(),
              s.reshape({l.groups, 1, l.columns}).expand(grouped).view()},
             x.device());
  return record(std::move(y), std::move(node), {v});
}

}  // namespace lowbit
