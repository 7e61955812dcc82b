#include "autograd/ops/softmax.h"

#include "autograd/core/node.h"
#include "autograd/ops/check.h"
#include "tensor/engine/row.h"

namespace lowbit {
namespace {

template <template <class> class Row>
void forward_cpu(const SoftmaxFwdArgs& a, Stream) {
  if (a.x.dtype == DType::f64)
    cpu::rows(a.rows, a.n, Row<double>{a.y.as<double>(), a.x.as<double>(), a.n});
  else
    cpu::rows(a.rows, a.n, Row<float>{a.y.as<float>(), a.x.as<float>(), a.n});
}
template <template <class> class Row>
void backward_cpu(const SoftmaxBwdArgs& a, Stream) {
  if (a.gy.dtype == DType::f64)
    cpu::rows(a.rows, a.n, Row<double>{a.dx.as<double>(), a.gy.as<double>(), a.y.as<double>(), a.n});
  else
    cpu::rows(a.rows, a.n, Row<float>{a.dx.as<float>(), a.gy.as<float>(), a.y.as<float>(), a.n});
}

struct SoftmaxNode final : Node {
  const char* op;
  const KernelSlot<SoftmaxBwdArgs>* kernel;
  Saved y;
  SoftmaxNode(const char* name, const KernelSlot<SoftmaxBwdArgs>* bwd, const Tensor& value)
      : op(name), kernel(bwd), y(value) {}
  const char* name() const override { return op; }
  void backward(const Tensor& gy, GradSink& gx) override {
    if (!gx.wants(0)) return;
    Tensor dx = gx.alloc(0);  // [..., C]
    const int64_t n = gy.size(-1), rows = n ? gy.numel() / n : 0;
    (*kernel)({dx.mutable_view(), gy.view(), y.get(op, 0).view(), rows, n}, gy.device());
    gx.add(0, dx);
  }
  void release() override { y.release(); }
  std::vector<Tensor> saved() const override { return {y.peek()}; }
};

Variable softmax_like(const char* op, const Variable& v, const KernelSlot<SoftmaxFwdArgs>& fwd,
                      const KernelSlot<SoftmaxBwdArgs>& bwd) {
  check_float(op, "x", v);
  LOWBIT_CHECK(v.ndim() > 0, shape, op, "x must have at least one dimension (got x=", v.str(), ")");
  const Tensor x = v.data().packed();
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  const int64_t n = x.size(-1), rows = n ? x.numel() / n : 0;
  fwd({y.mutable_view(), x.view(), rows, n}, x.device());
  auto node = std::make_shared<SoftmaxNode>(op, &bwd, y);
  return record(std::move(y), std::move(node), {v});
}

}  // namespace

KernelSlot<SoftmaxFwdArgs> softmax_fwd{"softmax.fwd", forward_cpu<SoftmaxFwdRow>};
KernelSlot<SoftmaxBwdArgs> softmax_bwd{"softmax.bwd", backward_cpu<SoftmaxBwdRow>};
KernelSlot<SoftmaxFwdArgs> log_softmax_fwd{"log_softmax.fwd", forward_cpu<LogSoftmaxFwdRow>};
KernelSlot<SoftmaxBwdArgs> log_softmax_bwd{"log_softmax.bwd", backward_cpu<LogSoftmaxBwdRow>};

Variable softmax(const Variable& x) { return softmax_like("softmax", x, softmax_fwd, softmax_bwd); }
Variable log_softmax(const Variable& x) {
  return softmax_like("log_softmax", x, log_softmax_fwd, log_softmax_bwd);
}

}  // namespace lowbit
