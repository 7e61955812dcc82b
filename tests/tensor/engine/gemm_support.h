#pragma once
// Shared by the tests of the two product engines.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "tensor/core/thread_pool.h"
#include "tensor/engine/gemm.h"
#include "tensor/engine/isa.h"
#include "tests/support/op_case.h"

namespace lowbit::test {

/// Restores instruction set and thread count.
class IsaGuard {
 public:
  ~IsaGuard() {
    set_isa(isa_);
    set_threads(0);
  }

 private:
  Isa isa_ = current_isa();
};

/// Runs f under every instruction set of this machine and every thread count.
template <class F>
void for_each_isa_and_threads(F f, std::vector<int> thread_counts = {1, 2, 3}) {
  const IsaGuard guard;
  for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512, Isa::amx}) {
    if (!isa_supported(isa)) continue;
    for (const int n : thread_counts) {
      SCOPED_TRACE(std::string(isa_name(isa)) + ", threads " + std::to_string(n));
      set_isa(isa);
      set_threads(n);
      f();
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

inline Tensor gaussian(const Shape& s, uint32_t seed) {
  std::mt19937 gen(seed);
  std::normal_distribution<float> normal;
  Tensor t = Tensor::empty(s);
  for (int64_t i = 0; i < t.numel(); ++i) t.data<float>()[i] = normal(gen);
  return t;
}

/// a · b in float64.
inline Tensor exact_product(const Tensor& a, const Tensor& b) {
  return matmul(GemmInput(a.cast(DType::f64)), GemmInput(b.cast(DType::f64)));
}

/// Largest error against float64 over the largest result.
inline double error_against(const Tensor& y, const Tensor& exact) {
  const std::vector<double> e = exact.to_vector<double>();
  const Tensor p = y.packed();
  double worst = 0, top = 0;
  for (size_t i = 0; i < e.size(); ++i) {
    worst = std::max(worst, std::fabs(double(p.data_const<float>()[i]) - e[i]));
    top = std::max(top, std::fabs(e[i]));
  }
  return worst / top;
}

/// Codes in [lo, hi]; the extremes occur often. offset: 0 none, 1 scalar, 2 along the last dimension.
inline Coded random_coded(const Shape& s, bool is_signed, int lo, int hi, int axis, int offset, double shift,
                          uint32_t seed) {
  std::mt19937 gen(seed);
  std::uniform_int_distribution<int> code(lo, hi), pick(0, 3);
  std::uniform_real_distribution<float> scale(0.01f, 0.2f), off(-1.0f, 1.0f);
  Coded c;
  c.codes = Tensor::empty(s, is_signed ? DType::i8 : DType::u8);
  for (int64_t i = 0; i < c.codes.numel(); ++i) {
    const int p = pick(gen), v = p == 0 ? lo : p == 1 ? hi : code(gen);
    if (is_signed)
      c.codes.data<int8_t>()[i] = int8_t(v);
    else
      c.codes.data<uint8_t>()[i] = uint8_t(v);
  }
  const auto floats = [&](int64_t n, auto& distribution) {
    Tensor t = Tensor::empty({n});
    for (int64_t i = 0; i < n; ++i) t.data<float>()[i] = distribution(gen);
    return t;
  };
  c.scale = floats(axis == Coded::kPerTensor ? 1 : s[axis], scale);
  if (offset) c.offset = floats(offset == 1 ? 1 : s[-1], off);
  c.scale_axis = axis;
  c.shift = shift;
  c.lo = lo;
  c.hi = hi;
  return c;
}

inline Coded on_gpu(const Coded& c) {
  Coded moved = c;
  moved.codes = c.codes.to(kGpu);
  moved.scale = c.scale.to(kGpu);
  if (c.offset.defined()) moved.offset = c.offset.to(kGpu);
  return moved;
}
inline Tensor on_gpu(const Tensor& t) { return t.defined() ? t.to(kGpu) : t; }

}  // namespace lowbit::test
