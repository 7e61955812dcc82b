#include "autograd/ops/softmax.h"

#include "autograd/core/node.h"
#include "autograd/ops/check.h"
#include "autograd/ops/deferred.h"
#include "autograd/ops/narrow.h"
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

void narrowed_forward_cpu(const SoftmaxFwdArgs& a, Stream) {
  cpu::rows(a.rows, a.n,
            NarrowedSoftmaxFwdRow{a.y.as<bf16>(), a.x.as<float>(), a.n, a.y.stride[a.y.ndim - 2]});
}
void narrowed_backward_cpu(const SoftmaxBwdArgs& a, Stream) {
  cpu::rows(a.rows, a.n,
            SoftmaxBwdRow<float, bf16>{a.dx.as<float>(), a.gy.as<float>(), a.y.as<bf16>(), a.n,
                                       a.y.stride[a.y.ndim - 2]});
}

int64_t row_count(const Tensor& x) { return x.size(-1) ? x.numel() / x.size(-1) : 0; }

/// y may be x.
void forward_into(const KernelSlot<SoftmaxFwdArgs>& fwd, Tensor& y, const Tensor& x) {
  fwd({y.mutable_view(), x.view(), row_count(x), x.size(-1)}, x.device());
}

/// Where x can be made again, so can y; what a quantizer after the softmax asked for is kept for the
/// gradient, which follows at once.
struct SoftmaxNode final : Node {
  const char* op;
  const KernelSlot<SoftmaxFwdArgs>* forward;
  const KernelSlot<SoftmaxBwdArgs>* kernel;
  Saved y;
  SavedValue x;
  bool from_x = false;
  mutable Tensor again;
  const char* name() const override { return op; }
  void backward(const Tensor& gy, GradSink& gx) override {
    if (!gx.wants(0)) return;
    const Tensor value = replay();
    again = Tensor{};
    Tensor dx = gradient_over(value, gx, 0);  // [..., C]
    (*kernel)({dx.mutable_view(), gy.view(), value.view(), row_count(gy), gy.size(-1)}, gy.device());
    gx.add(0, dx);
  }
  bool replays() const override { return from_x; }
  /// Rounded rows do so too coarsely.
  bool rows_sum_to_one() const override { return forward == &softmax_fwd; }
  Tensor replay() const override {
    if (!from_x) return y.get(op, 0);
    if (!again.defined()) again = x.get(op, 0), forward_into(*forward, again, again);
    return again;
  }
  void release() override { y.release(), x.release(), again = Tensor{}; }
  std::vector<Tensor> saved() const override { return {y.peek()}; }
};

Variable softmax_like(const char* op, const Variable& v, const KernelSlot<SoftmaxFwdArgs>& fwd,
                      const KernelSlot<SoftmaxBwdArgs>& bwd) {
  check_float(op, "x", v);
  LOWBIT_CHECK(v.ndim() > 0, shape, op, "x must have at least one dimension (got x=", v.str(), ")");
  auto node = std::make_shared<SoftmaxNode>();
  node->op = op, node->forward = &fwd, node->kernel = &bwd;
  if (node->from_x = can_replay(v); node->from_x) node->x.set(v);
  if (&fwd == &softmax_fwd && dynamic_cast<const DeferredScores*>(v.deferred())) {
    auto later = std::make_shared<DeferredSoftmax>();
    later->x = v;
    return record(std::move(later), v.shape(), v.device(), std::move(node), {v});
  }
  const Tensor x = v.data().packed();
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  forward_into(fwd, y, x);
  if (!node->from_x) node->y.set(y);
  return record(std::move(y), std::move(node), {v});
}

}  // namespace

Tensor DeferredSoftmax::values() const {
  const Deferred* const later = x.deferred();
  Tensor y = later ? later->values() : x.data();
  Tensor to = later ? y : Tensor::empty(y.shape(), y.dtype(), y.device());
  forward_into(softmax_fwd, to, y.packed());
  return to;
}

KernelSlot<SoftmaxFwdArgs> softmax_fwd{"softmax.fwd", forward_cpu<SoftmaxFwdRow>};
KernelSlot<SoftmaxBwdArgs> softmax_bwd{"softmax.bwd", backward_cpu<SoftmaxBwdRow>};
KernelSlot<SoftmaxFwdArgs> narrowed_softmax_fwd{"narrowed_softmax.fwd", narrowed_forward_cpu};
KernelSlot<SoftmaxBwdArgs> narrowed_softmax_bwd{"narrowed_softmax.bwd", narrowed_backward_cpu};
KernelSlot<SoftmaxFwdArgs> log_softmax_fwd{"log_softmax.fwd", forward_cpu<LogSoftmaxFwdRow>};
KernelSlot<SoftmaxBwdArgs> log_softmax_bwd{"log_softmax.bwd", backward_cpu<LogSoftmaxBwdRow>};

Variable softmax(const Variable& x) { return softmax_like("softmax", x, softmax_fwd, softmax_bwd); }
Variable narrowed_softmax(const Variable& v) {
  if (!stores_narrow(v) || v.ndim() == 0) return softmax(v);
  auto node = std::make_shared<SoftmaxNode>();
  node->op = "softmax", node->forward = &narrowed_softmax_fwd, node->kernel = &narrowed_softmax_bwd;
  const Tensor x = v.data().packed();
  constexpr int64_t kWord = 16 / sizeof(bf16);  // rows that a GPU reads in whole words
  const int64_t n = x.size(-1), rows = row_count(x);
  Tensor y = Tensor::empty({rows, ceil_div(n, kWord) * kWord}, DType::bf16, x.device()).slice(1, 0, n);
  narrowed_softmax_fwd({y.mutable_view(), x.view(), rows, n}, x.device());
  node->y.set(y);
  return record(Narrow{y.reshape(v.shape())}, std::move(node), {v});
}
Variable log_softmax(const Variable& x) {
  return softmax_like("log_softmax", x, log_softmax_fwd, log_softmax_bwd);
}

}  // namespace lowbit
