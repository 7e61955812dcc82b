#pragma once
// How a tensor falls into groups that share a scale, and mean |x| of each group.

#include <string_view>

#include "tensor/core/coded.h"
#include "tensor/core/kernel_slot.h"
#include "tensor/hd/math.h"
#include "tensor/hd/row.h"

namespace lowbit {

/// A packed x seen as [outer, groups, inner, columns]; one scale per (group, column), groups first.
struct GroupLayout {
  int64_t outer = 1, groups = 1, inner = 1, columns = 1;  ///< outer = 1 where columns > 1
  LOWBIT_HD int64_t scales() const { return groups * columns; }
  LOWBIT_HD int64_t members() const { return outer * inner; }  ///< elements that share a scale
};
/// `groups` equal runs of indices of `axis` (negative; Coded::kPerTensor: one group).
/// Errors  shape, value, named `name`
GroupLayout group_layout(const Shape& x, int axis, int64_t groups, std::string_view name);

/// A single group as the rows of x's last dimension: runs that threads and blocks can share.
GroupLayout in_rows(GroupLayout l, const Shape& x);

/// mean[g·columns + c] = Σ |x[o, g, i, c]| / (outer·inner) · factor, of x's dtype; 0 for groups without
/// elements. Order  columns = 1: row rule over i, column rule over o (inner = 1: column rule over o alone);
///        columns > 1: column rule over i      (docs/numerics.md, rules 3 and 4)
Tensor mean_abs(const Tensor& x, const GroupLayout& l, double factor = 1);

/// mean_abs for the scale of a quantizer.   Errors  numeric, named `name`: values of x that are not finite
/// (looked for on the CPU only: reading a device's values would wait for it)
Tensor finite_mean_abs(const Tensor& x, const GroupLayout& l, std::string_view name, double factor = 1);

struct MeanAbsArgs {
  View mean, x;  ///< packed; [scales], any shape
  View work;     ///< packed, mean_abs_workspace() elements; begins with [outer·groups], one per run
  GroupLayout l;
  double factor;
};
extern KernelSlot<MeanAbsArgs> mean_abs_kernel;

inline int64_t mean_abs_workspace(const GroupLayout& l) {
  return l.outer * l.groups + ceil_div(l.members(), kRowBlock) * l.scales() + 2 * ceil_div(l.inner, kChunk) +
         2;
}

/// Σ over one run of `inner` elements.
template <class T>
struct MeanAbsRun {
  const T* x;
  T* sums;
  int64_t inner;
  template <class Row>
  LOWBIT_HD void operator()(const Row& row, int64_t r) const {
    const T* const from = x + r * inner;
    T* const to = sums + r;
    const T s = row.sum(inner, [=](int64_t i) { return math::abs(from[i]); });
    row.once([=] { *to = s; });
  }
};

}  // namespace lowbit
