#include "autograd/ops/reduce.h"

#include "autograd/core/node.h"
#include "autograd/ops/broadcast.h"
#include "autograd/ops/check.h"
#include "tensor/engine/column.h"
#include "tensor/engine/pointwise.h"
#include "tensor/engine/reduce.h"
#include "tensor/engine/row.h"

namespace lowbit {
namespace {

template <class T>
void reduce_typed(const ReduceArgs& a) {
  const T* x = a.x.as<T>();
  T* y = a.y.as<T>();
  const int64_t extent = a.extent, inner = a.inner, cell = extent * inner;
  if (inner == 1 && a.outer == 1) {
    y[0] = cpu::sum(extent, [=](int64_t i) { return x[i]; });
  } else if (inner == 1) {
    cpu::rows(a.outer, extent, [=](const auto& row, int64_t r) {
      y[r] = row.sum(extent, [=](int64_t i) { return x[r * extent + i]; });
    });
  } else {
    // Nested parallel regions run serially: threads share the outer extent, or the columns when there is only
    // one.
    parallel_for(a.outer, std::max<int64_t>(1, cpu::kGrain / std::max<int64_t>(cell, 1)),
                 [=](int64_t b, int64_t e) {
                   for (int64_t o = b; o < e; ++o)
                     cpu::columns(
                         extent, inner, [=](int64_t m, int64_t n) { return x[o * cell + m * inner + n]; },
                         y + o * inner);
                 });
  }
}

void reduce_cpu(const ReduceArgs& a, Stream) {
  dispatch_real(a.x.dtype, [&](auto t) { reduce_typed<decltype(t)>(a); });
}

Tensor sum_extent(const Tensor& x, const Shape& shape, int64_t outer, int64_t extent, int64_t inner) {
  Tensor y = Tensor::empty(shape, x.dtype(), x.device());
  Tensor work;
  if (x.device()
          .is_cuda())  // a list of chunk sums, its own chunk sums, …; or one sum per column and block of rows
    work =
        Tensor::empty({inner == 1 ? 2 * ceil_div(extent, kChunk) + 4 : ceil_div(extent, kRowBlock) * inner},
                      x.dtype(), x.device());
  reduce_extent({y.mutable_view(), x.view(), work.mutable_view(), outer, extent, inner}, x.device());
  return y;
}

Tensor divided(const Tensor& x, double divisor) {
  if (divisor == 1) return x;
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  const Tensor d = Tensor::full(Shape{1}, divisor, x.dtype(), x.device()).expand(x.shape());
  div_fwd({y.mutable_view(), x.view(), d.view()}, x.device());
  return y;
}

Shape shape_after(const Shape& shape, unsigned dims, bool keep) {
  Shape s;
  for (int d = 0; d < shape.ndim(); ++d)
    if (!(dims >> d & 1u))
      s.append(shape[d]);
    else if (keep)
      s.append(1);
  return s.ndim() || shape.ndim() == 0 ? s : Shape{1};
}

unsigned dims_mask(const char* op, const Variable& x, const std::vector<int>& dims) {
  unsigned mask = 0;
  for (int d : dims) {
    LOWBIT_CHECK(d >= -x.ndim() && d < x.ndim(), shape, op, "dimension must be in [", -x.ndim(), ", ",
                 x.ndim(), ") (got dim=", d, ", x=", x.str(), ")");
    const unsigned bit = 1u << (d < 0 ? d + x.ndim() : d);
    LOWBIT_CHECK(!(mask & bit), shape, op, "dimensions must differ (got dim=", d, " twice, x=", x.str(), ")");
    mask |= bit;
  }
  return mask;
}

struct ReduceNode final : Node {
  const char* op;
  Shape kept, shape;  // of gy with the summed extents as 1, and of x
  double divisor;
  ReduceNode(const char* name, const Shape& with_ones, const Shape& x, double count)
      : op(name), kept(with_ones), shape(x), divisor(count) {}
  const char* name() const override { return op; }
  void backward(const Tensor& gy, GradSink& gx) override {
    if (!gx.wants(0)) return;
    gx.add(0, divided(gy, divisor).reshape(kept).expand(shape));
  }
  void release() override {}
  std::vector<Tensor> saved() const override { return {}; }
};

Variable reduce(const char* op, const Variable& x, unsigned dims, bool keep, bool average) {
  check_float(op, "x", x);
  double count = 1;
  for (int d = 0; d < x.ndim(); ++d)
    if (dims >> d & 1u) count *= double(x.size(d));
  LOWBIT_CHECK(!average || count > 0, shape, op, "x must not be empty (got x=", x.str(), ")");
  const double divisor = average ? count : 1;
  Tensor y = divided(reduce_sum(x.data(), dims), divisor);
  y = y.reshape(shape_after(x.shape(), dims, keep));
  auto node = std::make_shared<ReduceNode>(op, shape_after(x.shape(), dims, true), x.shape(), divisor);
  return record(std::move(y), std::move(node), {x});
}

unsigned all_dims(const Variable& x) { return (1u << x.ndim()) - 1; }

}  // namespace

KernelSlot<ReduceArgs> reduce_extent{"reduce", reduce_cpu};

Tensor reduce_sum(const Tensor& x, unsigned dims) {
  Tensor t = x.packed();
  for (int last = x.ndim() - 1; last >= 0; --last) {
    if (!(dims >> last & 1u)) continue;
    int first = last;
    while (first > 0 && (dims >> (first - 1) & 1u)) --first;
    Shape s = t.shape();
    int64_t outer = 1, extent = 1, inner = 1;
    for (int d = 0; d < s.ndim(); ++d) (d < first ? outer : d <= last ? extent : inner) *= s[d];
    for (int d = first; d <= last; ++d) s.set(d, 1);
    t = extent == 1 ? t.reshape(s) : sum_extent(t, s, outer, extent, inner);
    last = first;
  }
  return t;
}

Tensor reduce_to(const Tensor& gy, const Shape& shape) {
  if (gy.shape() == shape) return gy;
  const int added = gy.ndim() - shape.ndim();
  unsigned dims = 0;
  for (int d = 0; d < gy.ndim(); ++d)
    if (d < added || shape[d - added] != gy.size(d)) dims |= 1u << d;
  return reduce_sum(gy, dims).reshape(shape);
}

Variable sum(const Variable& x) { return reduce("sum", x, all_dims(x), false, false); }
Variable sum(const Variable& x, std::vector<int> dims, bool keep) {
  return reduce("sum", x, dims_mask("sum", x, dims), keep, false);
}
Variable mean(const Variable& x) { return reduce("mean", x, all_dims(x), false, true); }
Variable mean(const Variable& x, std::vector<int> dims, bool keep) {
  return reduce("mean", x, dims_mask("mean", x, dims), keep, true);
}

}  // namespace lowbit
