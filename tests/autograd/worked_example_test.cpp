// The code of docs/adding_an_op.md, in the document's order: an op, its tests and its benchmark entry.
// In the tree the four parts are autograd/ops/rms_norm.h, .cpp, .cu and tests/autograd/rms_norm_test.cpp.

#include <gtest/gtest.h>

#include "autograd/core/node.h"
#include "autograd/ops/broadcast.h"
#include "autograd/ops/check.h"
#include "autograd/ops/pointwise.h"
#include "autograd/ops/reduce.h"
#include "tensor/core/kernel_slot.h"
#include "tensor/engine/pointwise.h"
#include "tensor/engine/row.h"
#include "tensor/hd/math.h"
#include "tests/support/op_case.h"

namespace lowbit::worked_example {

/// Root-mean-square normalisation: y = x·r,  r = 1/√(mean(x²) + eps), over the last dimension.
/// Shapes  x, y [..., C];  eps > 0
/// Grad    dx = r·(gy − y·mean(gy·y))
/// Saves   x (shared), r per row    Order  row rule (docs/numerics.md, rule 3)
/// Source  Zhang & Sennrich 2019, eq. 4, without the gain
/// Errors  dtype: x is not floating;  shape: x has no dimension;  value: eps
Variable rms_norm(const Variable& x, double eps);

/// All views packed: x, y, gy, dx [rows, n]; r [rows]; one dtype.
struct RmsNormFwdArgs {
  View y, r, x;
  int64_t rows, n;
  double eps;
};
struct RmsNormBwdArgs {
  View dx, gy, x, r;
  int64_t rows, n;
};

template <class T>
struct RmsNormFwdRow {
  T *y, *scale;
  const T* x;
  int64_t n;
  T eps;
  explicit RmsNormFwdRow(const RmsNormFwdArgs& a)
      : y(a.y.as<T>()), scale(a.r.as<T>()), x(a.x.as<T>()), n(a.n), eps(T(a.eps)) {}
  template <class Row>
  LOWBIT_HD void operator()(const Row& row, int64_t i_row) const {
    const T* const from = x + i_row * n;
    T *const to = y + i_row * n, *const kept = scale + i_row;
    const T square = row.sum(n, [=](int64_t i) { return from[i] * from[i]; });
    const T r = math::rsqrt(square / T(n) + eps);
    row.for_each(n, [=](int64_t i) { to[i] = from[i] * r; });
    row.once([=] { *kept = r; });
  }
};

template <class T>
struct RmsNormBwdRow {
  T* dx;
  const T *gy, *x, *scale;
  int64_t n;
  explicit RmsNormBwdRow(const RmsNormBwdArgs& a)
      : dx(a.dx.as<T>()), gy(a.gy.as<T>()), x(a.x.as<T>()), scale(a.r.as<T>()), n(a.n) {}
  template <class Row>
  LOWBIT_HD void operator()(const Row& row, int64_t i_row) const {
    const T *const g = gy + i_row * n, *const from = x + i_row * n;
    T* const to = dx + i_row * n;
    const T r = scale[i_row];
    const T mean = row.sum(n, [=](int64_t i) { return g[i] * (from[i] * r); }) / T(n);
    row.for_each(n, [=](int64_t i) { to[i] = r * (g[i] - from[i] * r * mean); });
  }
};

extern KernelSlot<RmsNormFwdArgs> rms_norm_fwd;
extern KernelSlot<RmsNormBwdArgs> rms_norm_bwd;

namespace {

void forward_cpu(const RmsNormFwdArgs& a, Stream) {
  dispatch_real(a.x.dtype, [&](auto t) { cpu::rows(a.rows, a.n, RmsNormFwdRow<decltype(t)>(a)); });
}
void backward_cpu(const RmsNormBwdArgs& a, Stream) {
  dispatch_real(a.x.dtype, [&](auto t) { cpu::rows(a.rows, a.n, RmsNormBwdRow<decltype(t)>(a)); });
}

}  // namespace

KernelSlot<RmsNormFwdArgs> rms_norm_fwd{"rms_norm.fwd", forward_cpu};
KernelSlot<RmsNormBwdArgs> rms_norm_bwd{"rms_norm.bwd", backward_cpu};

namespace {

struct RmsNormNode final : Node {
  Saved x, r;
  const char* name() const override { return "rms_norm"; }
  void backward(const Tensor& gy, GradSink& gx) override {
    if (!gx.wants(0)) return;
    Tensor dx = gx.alloc(0);  // [..., C]
    const Tensor &from = x.get(name(), 0), &scale = r.get(name(), 1);
    rms_norm_bwd({dx.mutable_view(), gy.view(), from.view(), scale.view(), scale.numel(), gy.size(-1)},
                 gy.device());
    gx.add(0, dx);
  }
  void release() override { x.release(), r.release(); }
  std::vector<Tensor> saved() const override { return {x.peek(), r.peek()}; }
};

}  // namespace

Variable rms_norm(const Variable& v, double eps) {
  check_float("rms_norm", "x", v);
  LOWBIT_CHECK(v.ndim() > 0, shape, "rms_norm", "x must have at least one dimension (got x=", v.str(), ")");
  LOWBIT_CHECK(eps > 0, value, "rms_norm", "eps must be positive (got ", eps, ")");
  const Tensor x = v.data().packed();
  const int64_t n = x.size(-1), rows = n ? x.numel() / n : 0;
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  Tensor r = Tensor::empty({rows}, x.dtype(), x.device());
  rms_norm_fwd({y.mutable_view(), r.mutable_view(), x.view(), rows, n, eps}, x.device());
  auto node = std::make_shared<RmsNormNode>();
  node->x.set(x), node->r.set(r);
  return record(std::move(y), std::move(node), {v});
}

namespace {

using namespace lowbit::test;

std::vector<InputSpec> input(Shape s) { return {{.name = "x", .shape = s, .lo = -2, .hi = 3}}; }

const bool registered = register_op_cases(
    "WorkedExample", {{.name = "rms_norm",
                       .inputs = input({4, 5, 33}),
                       .fn = [](std::span<const Variable> v) { return rms_norm(v[0], 1e-6); },
                       .sizes =
                           [](int64_t n) {
                             return input({3, n});
                           },
                       .misuse = {{"eps",
                                   [] {
                                     rms_norm(Variable(Tensor::zeros({2, 3})), 0);
                                   },
                                   "rms_norm: eps must be positive (got 0)"},
                                  {"dtype",
                                   [] {
                                     rms_norm(Variable(Tensor::zeros({2, 3}, DType::i64)), 1e-6);
                                   },
                                   "rms_norm: x must be f32 or f64 (got x=[2, 3] i64 cpu)"}},
                       .perf = {.inputs = input({64, 197, 192})},
                       .cuda = false}});

/// The composition of plain ops that the fused op must equal: the same order of sums, so bit for bit.
TEST(WorkedExample, EqualsItsComposition) {
  const Variable x(make_input(input({4, 33})[0])), one(Tensor::full({1}, 1));
  const Variable r = div(one, sqrt(add_scalar(mean(square(x), {-1}, true), 1e-6)));
  EXPECT_EQ(difference(rms_norm(x, 1e-6).data(), mul(x, r).data()), "");
}

}  // namespace
}  // namespace lowbit::worked_example
