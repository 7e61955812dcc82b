#include "autograd/ops/drop_path.h"

#include <algorithm>

#include "autograd/core/node.h"
#include "autograd/ops/check.h"
#include "tensor/core/draws.h"
#include "tensor/core/thread_pool.h"

namespace lowbit {
namespace {

template <class T>
void apply(const DropPathArgs& a) {
  const T* x = a.x.as<T>();
  T* y = a.y.as<T>();
  const T q = T(a.keep_probability);
  const int64_t n = a.n;
  parallel_for(a.samples, std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(n, 1)),
               [&](int64_t begin, int64_t end) {
                 for (int64_t b = begin; b < end; ++b) {
                   const bool keep = DropPathMath::keep(a.key, b, float(a.keep_probability));
                   const T* from = x + b * n;
                   T* to = y + b * n;
#pragma omp simd
                   for (int64_t i = 0; i < n; ++i) to[i] = DropPathMath::apply(from[i], keep, q);
                 }
               });
}

void drop_path_cpu(const DropPathArgs& a, Stream) {
  if (a.x.dtype == DType::f64)
    apply<double>(a);
  else
    apply<float>(a);
}

Tensor masked(const Tensor& x, const RngKey& key, double p) {
  const Tensor from = x.packed();
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  const int64_t samples = x.size(0), n = samples ? x.numel() / samples : 0;
  drop_path_apply({y.mutable_view(), from.view(), samples, n, key, 1 - p}, x.device());
  return y;
}

struct DropPathNode final : Node {
  RngKey key;
  double p;
  const char* name() const override { return "drop_path"; }
  void backward(const Tensor& gy, GradSink& gx) override {
    if (gx.wants(0)) gx.add(0, masked(gy, key, p));
  }
  void release() override {}
  std::vector<Tensor> saved() const override { return {}; }
};

}  // namespace

KernelSlot<DropPathArgs> drop_path_apply{"drop_path", drop_path_cpu};

Variable drop_path(const Variable& x, double p) {
  check_float("drop_path", "x", x);
  LOWBIT_CHECK(x.ndim() > 0, shape, "drop_path", "x must have at least one dimension (got x=", x.str(), ")");
  LOWBIT_CHECK(p >= 0 && p < 1, value, "drop_path", "p must be in [0, 1) (got ", p, ")");
  if (p == 0) return x;
  auto node = std::make_shared<DropPathNode>();
  node->key = reserve_draws(uint64_t(x.size(0)));
  node->p = p;
  Tensor y = masked(x.data(), node->key, p);
  return record(std::move(y), std::move(node), {x});
}

}  // namespace lowbit
