#include "autograd/ops/residual.h"

#include <algorithm>

#include "autograd/core/node.h"
#include "autograd/ops/check.h"
#include "autograd/ops/narrow.h"
#include "tensor/core/draws.h"
#include "tensor/engine/pointwise.h"

namespace lowbit {
namespace {

struct Sum {
  template <class T>
  LOWBIT_HD T operator()(T x, T branch) const {
    return ResidualMath::sum(x, branch);
  }
};

/// Types of y, x and the branch.
template <class Y, class X, class B>
void typed(const ResidualArgs& a) {
  using T = compute_t<Y>;
  if (!a.drops) return cpu::pointwise_typed<1, false, Y, X, B>({a.y, a.x, a.branch}, Sum{});
  Y* const y = a.y.as<Y>();
  const X* const x = a.x.as<X>();
  const B* const branch = a.branch.as<B>();
  const T q = T(a.keep_probability);
  cpu::parallel_wide(a.samples * a.n, cpu::kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {
      const int64_t b = i / a.n, stop = std::min(end, (b + 1) * a.n);
      const bool keep = DropPathMath::keep(a.key, b, float(a.keep_probability));
#pragma omp simd
      for (int64_t j = i; j < stop; ++j) y[j] = Y(ResidualMath::sum(T(x[j]), T(branch[j]), keep, q));
      i = stop;
    }
  });
}

void forward_cpu(const ResidualArgs& a, Stream) {
  if (a.y.dtype == DType::f64)
    typed<double, double, double>(a);
  else if (a.y.dtype == DType::f32)
    typed<float, float, float>(a);
  else if (a.x.dtype == DType::f32)
    typed<bf16, float, float>(a);
  else if (a.branch.dtype == DType::f32)
    typed<bf16, bf16, float>(a);
  else
    typed<bf16, bf16, bf16>(a);
}

struct ResidualNode final : Node {
  RngKey key;
  double p = 0;
  const char* name() const override { return "residual"; }
  void backward(const Tensor& gy, GradSink& gx) override {
    gx.add(0, gy);
    if (!gx.wants(1)) return;
    if (p == 0) return gx.add(1, gy);
    const int64_t samples = gy.size(0), n = samples ? gy.numel() / samples : 0;
    Tensor d = gx.alloc(1);
    drop_path_apply({d.mutable_view(), gy.view(), samples, n, key, 1 - p}, gy.device());
    gx.add(1, d);
  }
  void release() override {}
  std::vector<Tensor> saved() const override { return {}; }
};

}  // namespace

KernelSlot<ResidualArgs> residual_fwd{"residual.fwd", forward_cpu};

Variable residual(const Variable& x, const Variable& branch, double p) {
  const char* const op = "residual";
  check_float(op, "x", x);
  check_same_kind(op, "x", x, "branch", branch);
  LOWBIT_CHECK(x.ndim() > 0 && x.shape() == branch.shape(), shape, op,
               "x and branch must have one shape of at least one dimension (got x=", x.str(),
               ", branch=", branch.str(), ")");
  LOWBIT_CHECK(p >= 0 && p < 1, value, op, "p must be in [0, 1) (got ", p, ")");
  auto node = std::make_shared<ResidualNode>();
  node->p = p;
  if (p > 0) node->key = reserve_draws(uint64_t(x.size(0)));
  const bool narrow = stores_narrow(x);
  const Tensor from = (narrow ? x.stored() : x.data()).packed(),
               sum = (narrow && x.narrow() ? branch.stored() : branch.data()).packed();
  Tensor y = Tensor::empty(x.shape(), narrow ? DType::bf16 : x.dtype(), x.device());
  const int64_t samples = x.size(0), n = samples ? x.numel() / samples : 0;
  residual_fwd({y.mutable_view(), from.view(), sum.view(), samples, n, p > 0, node->key, 1 - p}, x.device());
  if (narrow) return record(Narrow{std::move(y)}, std::move(node), {x, branch});
  return record(std::move(y), std::move(node), {x, branch});
}

}  // namespace lowbit
