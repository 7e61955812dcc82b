#include "autograd/ops/embedding.h"

#include <algorithm>
#include <cstring>

#include "autograd/core/node.h"
#include "autograd/ops/check.h"
#include "tensor/core/thread_pool.h"

namespace lowbit {
namespace {

int64_t rows_per_grain(int64_t n) { return std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(n, 1)); }

template <class T>
void gather(const GatherRowsArgs& a) {
  const int64_t* ids = a.ids.as<int64_t>();
  parallel_for(a.count, rows_per_grain(a.n), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      std::memcpy(a.y.as<T>() + i * a.n, a.table.as<T>() + ids[i] * a.n, size_t(a.n) * sizeof(T));
  });
}

/// Each thread owns a range of table rows and reads every id, so the order of the sums is the position's.
template <class T>
void scatter(const ScatterRowsArgs& a) {
  const int64_t* ids = a.ids.as<int64_t>();
  const T* gy = a.gy.as<T>();
  T* d = a.dtable.as<T>();
  const int64_t n = a.n;
  parallel_for(a.rows, rows_per_grain(n), [&](int64_t begin, int64_t end) {
    std::fill(d + begin * n, d + end * n, T(0));
    for (int64_t i = 0; i < a.count; ++i) {
      if (ids[i] < begin || ids[i] >= end) continue;
      T* to = d + ids[i] * n;
      const T* from = gy + i * n;
#pragma omp simd
      for (int64_t c = 0; c < n; ++c) to[c] += from[c];
    }
  });
}

void gather_cpu(const GatherRowsArgs& a, Stream) {
  if (a.y.dtype == DType::f64)
    gather<double>(a);
  else
    gather<float>(a);
}
void scatter_cpu(const ScatterRowsArgs& a, Stream) {
  if (a.gy.dtype == DType::f64)
    scatter<double>(a);
  else
    scatter<float>(a);
}

struct GatherRowsNode final : Node {
  const char* op = "";
  Saved ids;
  int64_t rows = 0;
  const char* name() const override { return op; }
  void backward(const Tensor& gy, GradSink& gx) override {
    if (!gx.wants(0)) return;
    const Tensor id = ids.get(op, 1);
    Tensor d = gx.alloc(0);
    const int64_t n = rows ? d.numel() / rows : 0;
    scatter_rows({d.mutable_view(), gy.view(), id.view(), rows, id.numel(), n}, gy.device());
    gx.add(0, d);
  }
  void release() override { ids.release(); }
  std::vector<Tensor> saved() const override { return {ids.peek()}; }
};

Variable gather(const char* op, const char* table_name, const Variable& table, const Tensor& ids,
                const Shape& shape) {
  const int64_t rows = table.size(0);
  const Tensor id = ids.packed(), from = table.data().packed();
  if (!ids.device().is_cuda())
    for (int64_t i = 0; i < id.numel(); ++i) {
      const int64_t v = id.data_const<int64_t>()[i];
      LOWBIT_CHECK(v >= 0 && v < rows, value, op, "ids must be in [0, ", rows, ") (got id ", v,
                   " at position ", i, ", ", table_name, "=", table.str(), ")");
    }
  Tensor y = Tensor::empty(shape, table.dtype(), table.device());
  const int64_t n = id.numel() ? y.numel() / id.numel() : 0;
  gather_rows({y.mutable_view(), from.view(), id.view(), rows, id.numel(), n, op}, table.device());
  auto node = std::make_shared<GatherRowsNode>();
  node->op = op;
  node->ids.set(id);
  node->rows = rows;
  return record(std::move(y), std::move(node), {table});
}

}  // namespace

KernelSlot<GatherRowsArgs> gather_rows{"gather_rows", gather_cpu};
KernelSlot<ScatterRowsArgs> scatter_rows{"scatter_rows", scatter_cpu};

Variable embedding(const Variable& weight, const Tensor& ids) {
  check_float("embedding", "weight", weight);
  check_ids("embedding", "ids", ids);
  LOWBIT_CHECK(weight.ndim() == 2, shape, "embedding",
               "weight must have two dimensions (got weight=", weight.str(), ")");
  Shape shape = ids.shape();
  shape.append(weight.size(1));
  return gather("embedding", "weight", weight, ids, shape);
}

Variable index_select(const Variable& x, const Tensor& ids) {
  check_float("index_select", "x", x);
  check_ids("index_select", "ids", ids);
  LOWBIT_CHECK(ids.ndim() == 1, shape, "index_select", "ids must have one dimension (got ids=", ids.str(),
               ")");
  LOWBIT_CHECK(x.ndim() > 0, shape, "index_select", "x must have at least one dimension (got x=", x.str(),
               ")");
  Shape shape = x.shape();
  shape.set(0, ids.size(0));
  return gather("index_select", "x", x, ids, shape);
}

}  // namespace lowbit
