#pragma once
#include <span>
#include <vector>

#include "tensor/core/kernel_slot.h"
#include "tensor/core/tensor.h"

namespace lowbit {

class Variable;

/// y[o, i] = Σ_e x[o, e, i]; packed. Row rule for inner = 1, else column rule. `work` (CUDA only): partial
/// sums.
struct ReduceArgs {
  View y, x, work;
  int64_t outer, extent, inner;
};
extern KernelSlot<ReduceArgs> reduce_extent;

/// Sum over the marked dimensions of x, extents kept as 1; packed. Neighbouring marked dimensions count as
/// one; groups of them are summed from the last to the first: the last dimension by the row rule, others by
/// the column rule (docs/numerics.md, rules 3 and 4), the whole tensor by the row rule on its packed order.
Tensor reduce_sum(const Tensor& x, unsigned dims);

/// gy summed down to the shape of a broadcast operand: the gradient of broadcasting.
Tensor reduce_to(const Tensor& gy, const Shape& shape);

/// Sum of x over `dims`, or over everything to shape [1].
/// Shapes  x any; y without `dims`, or with extents 1 there (keep)
/// Grad    dx = gy, repeated over the summed dimensions
/// Saves   nothing    Order  numerics rules 3 and 4, see reduce_sum
/// Source  none
/// Errors  dtype: x is not floating;  shape: a dimension that x has not, or named twice
Variable sum(const Variable& x);
Variable sum(const Variable& x, std::vector<int> dims, bool keep = false);

/// The sum divided by the number of its terms.   Grad  gy divided by it    Errors  also shape: no terms
Variable mean(const Variable& x);
Variable mean(const Variable& x, std::vector<int> dims, bool keep = false);

}  // namespace lowbit
