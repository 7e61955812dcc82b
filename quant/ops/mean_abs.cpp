#include "quant/ops/mean_abs.h"

#include <algorithm>
#include <cmath>

#include "tensor/core/tensor.h"
#include "tensor/engine/column.h"
#include "tensor/engine/pointwise.h"

namespace lowbit {
namespace {

template <class T>
void mean_abs_typed(const MeanAbsArgs& a) {
  const GroupLayout l = a.l;
  const T* const x = a.x.as<const T>();
  T *const mean = a.mean.as<T>(), *const runs = l.outer == 1 ? mean : a.work.as<T>();
  const auto rows_of = [](const T* from, int64_t stride) {
    return [=](int64_t m, int64_t n) { return math::abs(from[m * stride + n]); };
  };
  if (l.columns > 1) {
    parallel_for(l.groups, std::max<int64_t>(1, cpu::kGrain / (l.inner * l.columns)),
                 [&](int64_t b, int64_t e) {
                   for (int64_t g = b; g < e; ++g)
                     cpu::columns(l.inner, l.columns, rows_of(x + g * l.inner * l.columns, l.columns),
                                  mean + g * l.columns);
                 });
  } else if (l.inner == 1) {
    cpu::columns(l.outer, l.groups, rows_of(x, l.groups), mean);
  } else if (l.outer * l.groups == 1) {
    *mean = cpu::sum(l.inner, [=](int64_t i) { return math::abs(x[i]); });
  } else {
    cpu::rows(l.outer * l.groups, l.inner, MeanAbsRun<T>{x, runs, l.inner});
    if (l.outer > 1) cpu::columns(l.outer, l.groups, rows_of(runs, l.groups), mean);
  }
  for (int64_t g = 0; g < l.scales(); ++g) mean[g] = mean[g] / T(l.members()) * T(a.factor);
}

void mean_abs_cpu(const MeanAbsArgs& a, Stream) {
  dispatch_real(a.x.dtype, [&]<class T>(T) { mean_abs_typed<T>(a); });
}

}  // namespace

constinit KernelSlot<MeanAbsArgs> mean_abs_kernel{"mean_abs", mean_abs_cpu};

GroupLayout group_layout(const Shape& x, int axis, int64_t groups, std::string_view name) {
  GroupLayout l;
  if (axis == Coded::kPerTensor) {
    LOWBIT_CHECK(groups == 1, value, name, "a quantizer without an axis has one group (got ", groups, ")");
    l.inner = x.numel();
    return l;
  }
  LOWBIT_CHECK(axis < 0 && -axis <= x.ndim(), shape, name, "axis must lie in [-", x.ndim(),
               ", -1] (got axis=", axis, ", x=", x.str(), ")");
  LOWBIT_CHECK(groups > 0 && x[axis] % groups == 0, shape, name,
               "groups must divide the axis (got groups=", groups, ", axis=", axis, ", x=", x.str(), ")");
  const int at = x.ndim() + axis;
  for (int d = 0; d < at; ++d) l.outer *= x[d];
  l.groups = groups;
  l.inner = x[axis] / groups;
  for (int d = at + 1; d < x.ndim(); ++d) l.inner *= x[d];
  return l;
}

GroupLayout in_rows(GroupLayout l, const Shape& x) {
  if (l.outer * l.groups == 1 && x.ndim() > 0 && x[-1] > 0) l.outer = x.numel() / x[-1], l.inner = x[-1];
  return l;
}

Tensor mean_abs(const Tensor& x, const GroupLayout& l, double factor) {
  LOWBIT_ASSERT(x.numel() == l.members() * l.scales() && (l.outer == 1 || l.columns == 1));
  const Tensor packed = x.packed();
  if (x.numel() == 0) return Tensor::zeros({l.scales()}, x.dtype(), x.device());
  Tensor mean = Tensor::empty({l.scales()}, x.dtype(), x.device());
  Tensor work = Tensor::empty({mean_abs_workspace(l)}, x.dtype(), x.device());
  mean_abs_kernel({mean.mutable_view(), packed.view(), work.mutable_view(), l, factor}, x.device());
  return mean;
}

Tensor finite_mean_abs(const Tensor& x, const GroupLayout& l, std::string_view name, double factor) {
  Tensor mean = mean_abs(x, l, factor);
  if (mean.device().is_cuda()) return mean;
  dispatch_real(mean.dtype(), [&]<class T>(T) {
    const T* v = mean.data_const<T>();
    for (int64_t g = 0; g < mean.numel(); ++g)
      LOWBIT_CHECK(std::isfinite(v[g]), numeric, name, "x must be finite (got a mean of ", v[g], " in group ",
                   g, ")");
  });
  return mean;
}

}  // namespace lowbit
