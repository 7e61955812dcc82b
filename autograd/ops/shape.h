#pragma once
// Ops that move values without arithmetic. They return views where the layout allows it, and carry integer
// codes along when one scale serves the whole tensor.

#include <initializer_list>
#include <span>
#include <vector>

#include "tensor/core/shape.h"

namespace lowbit {

class Variable;

/// Shapes  y has the elements of x in row-major order; one extent may be -1.   Grad  dx = gy reshaped
/// Errors  shape: number of elements differs
Variable reshape(const Variable& x, std::vector<int64_t> shape);

/// Shapes  y.shape[i] = x.shape[dims[i]].   Grad  dx = gy permuted back
Variable permute(const Variable& x, std::initializer_list<int> dims);
Variable transpose(const Variable& x, int a, int b);

/// Shapes  y = x[.., begin:end, ..] along dim.   Grad  dx = gy there, 0 elsewhere
Variable slice(const Variable& x, int dim, int64_t begin, int64_t end);
/// Shapes  y = x[.., index, ..], dimension removed.
Variable select(const Variable& x, int dim, int64_t index);

/// Shapes  parts agree except along dim.   Grad  each part's slice of gy
Variable concat(std::span<const Variable> parts, int dim);

/// One sample for the whole batch, e.g. a class token.
/// Shapes  x [1, ...] → [batch, ...], a view.   Grad  dx = Σ gy over the batch (column rule)
Variable expand_batch(const Variable& x, int64_t batch);

/// Non-overlapping square patches, the im2col of a convolution whose stride is its kernel.
/// Shapes  x [B, C, H, W] → [B, (H/P)·(W/P), C·P·P]; patches row-major, inside a patch the order of a conv
/// weight [O, C, P, P].   Grad  the inverse move.   Errors  shape: H, W not multiples of P
Variable patches(const Variable& x, int64_t patch);

}  // namespace lowbit
