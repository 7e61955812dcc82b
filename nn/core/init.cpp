#include "nn/core/init.h"

#include "tensor/hd/philox.h"

namespace lowbit::init {

Tensor trunc_normal(const Shape& s, double std, Generator& g) {
  Tensor t = Tensor::empty(s);
  float* p = t.data<float>();
  const int64_t n = t.numel();
  const RngKey key = g.reserve(uint64_t(n));
  for (int64_t i = 0; i < n; ++i) {
    float v = philox_normal(key, uint64_t(i)) * float(std);
    while (v < -2.f || v > 2.f) v = philox_normal(g.reserve(4), 0) * float(std);
    p[i] = v;
  }
  return t;
}

Tensor uniform(const Shape& s, double bound, Generator& g) {
  Tensor t = Tensor::empty(s);
  float* p = t.data<float>();
  const RngKey key = g.reserve(uint64_t(t.numel()));
  for (int64_t i = 0; i < t.numel(); ++i)
    p[i] = (philox_uniform(key, uint64_t(i)) * 2.f - 1.f) * float(bound);
  return t;
}

}  // namespace lowbit::init
