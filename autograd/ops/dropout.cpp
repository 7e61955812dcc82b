#include "autograd/ops/dropout.h"

#include <algorithm>

#include "autograd/core/node.h"
#include "autograd/ops/check.h"
#include "tensor/core/draws.h"
#include "tensor/core/thread_pool.h"

namespace lowbit {
namespace {

template <class T>
void apply(const DropoutArgs& a, int64_t n) {
  constexpr int64_t kBatch = 64;  // Philox blocks drawn together, so that the rounds vectorise
  const T* x = a.x.as<T>();
  T* y = a.y.as<T>();
  const float p = float(a.p);
  const T scale = T(1 / (1 - a.p));
  parallel_for((n + 4 * kBatch - 1) / (4 * kBatch), 1 << 6, [&](int64_t begin, int64_t end) {
    alignas(64) uint32_t word[4 * kBatch];
    for (int64_t batch = begin; batch < end; ++batch) {
      const int64_t first = batch * kBatch;
#pragma omp simd
      for (int64_t b = 0; b < kBatch; ++b) {
        const PhiloxBlock w = philox_block(a.key, uint64_t(first + b));
        word[4 * b] = w.w0, word[4 * b + 1] = w.w1, word[4 * b + 2] = w.w2, word[4 * b + 3] = w.w3;
      }
      const int64_t count = std::min(4 * kBatch, n - 4 * first);
      const T* from = x + 4 * first;
      T* to = y + 4 * first;
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) to[i] = DropoutMath::apply(from[i], word[i], p, scale);
    }
  });
}

void dropout_cpu(const DropoutArgs& a, Stream) {
  if (a.x.dtype == DType::f64)
    apply<double>(a, a.x.numel());
  else
    apply<float>(a, a.x.numel());
}

Tensor masked(const Tensor& x, const RngKey& key, double p) {
  const Tensor from = x.packed();
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  dropout_apply({y.mutable_view(), from.view(), key, p}, x.device());
  return y;
}

struct DropoutNode final : Node {
  RngKey key;
  double p;
  const char* name() const override { return "dropout"; }
  void backward(const Tensor& gy, GradSink& gx) override {
    if (gx.wants(0)) gx.add(0, masked(gy, key, p));
  }
  void release() override {}
  std::vector<Tensor> saved() const override { return {}; }
};

}  // namespace

KernelSlot<DropoutArgs> dropout_apply{"dropout", dropout_cpu};

Variable dropout(const Variable& x, double p) {
  check_float("dropout", "x", x);
  LOWBIT_CHECK(p >= 0 && p < 1, value, "dropout", "p must be in [0, 1) (got ", p, ")");
  if (p == 0) return x;
  auto node = std::make_shared<DropoutNode>();
  node->key = reserve_draws(uint64_t(x.numel()));
  node->p = p;
  Tensor y = masked(x.data(), node->key, p);
  return record(std::move(y), std::move(node), {x});
}

}  // namespace lowbit
