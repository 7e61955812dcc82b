#pragma once
// Factors of scale gradients that follow from the absolute sum of a weight, without the host reading it.

#include <cmath>
#include <span>

#include "tensor/core/kernel_slot.h"
#include "tensor/core/tensor.h"
#include "tensor/hd/row.h"

namespace lowbit {

/// The factor of every group of a weight w.
///   lsq   l = Σ|w| / groups in f32,   g = 1/√(l·Qp) with l·Qp in f32; 1 where l = 0
///   bins  l = Σ|w| in f64, rounded to f32,   g = 1/√(l·Qp) in f64
/// and g is rounded to f32 once.   Order  row rule over the flat weight, in the precision of the sum
/// Shapes  w any, f32;  highest levels Qp one per group;  g [groups] f32
/// Source  VVTQ, whose regularizer takes the sum in double precision (docs/methods/vvtq.md)
enum class L1Factor : uint8_t { lsq, bins };
Tensor l1_factors(const Tensor& w, std::span<const int> highest, L1Factor kind);

struct L1FactorArgs {
  const float* w;
  int64_t n;
  float* factors;          ///< [groups]
  const int32_t* highest;  ///< [groups]
  int64_t groups;
  double* work;  ///< l1_workspace(n) elements, the sum first; f32 of the same places for `lsq`
  L1Factor kind;
};
inline int64_t l1_workspace(int64_t n) { return 2 * ceil_div(n, kChunk) + 3; }
extern KernelSlot<L1FactorArgs> l1_factor;

template <class T>
struct AbsElement {
  const float* w;
  LOWBIT_HD T operator()(int64_t i) const { return T(w[i] < 0 ? -w[i] : w[i]); }
};

LOWBIT_HD float lsq_l1_factor(float sum, int64_t groups, int32_t highest) {
  const float l = sum / float(groups);
  return l > 0 ? float(1 / std::sqrt(double(l * float(highest)))) : 1.f;
}
LOWBIT_HD float bin_l1_factor(double sum, int32_t highest) {
  return float(1 / std::sqrt(double(float(sum)) * double(highest)));
}
/// All groups, from the sum in a.work.
LOWBIT_HD void l1_finish(const L1FactorArgs& a, int64_t g) {
  a.factors[g] = a.kind == L1Factor::lsq
                     ? lsq_l1_factor(*static_cast<const float*>(static_cast<const void*>(a.work)), a.groups,
                                     a.highest[g])
                     : bin_l1_factor(*a.work, a.highest[g]);
}

}  // namespace lowbit
