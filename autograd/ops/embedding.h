#pragma once
#include "tensor/core/kernel_slot.h"
#include "tensor/core/tensor.h"

namespace lowbit {

class Variable;

/// y [count, n], table [rows, n], ids [count] i64; all packed. op: whom an error blames.
struct GatherRowsArgs {
  View y, table, ids;
  int64_t rows, count, n;
  const char* op;
};
/// dtable [rows, n] is overwritten: row r is the sum of the gy rows with id r in increasing position.
struct ScatterRowsArgs {
  View dtable, gy, ids;
  int64_t rows, count, n;
};
extern KernelSlot<GatherRowsArgs> gather_rows;
extern KernelSlot<ScatterRowsArgs> scatter_rows;

/// Token embedding: y[..., :] = weight[ids[...], :].
/// Shapes  weight [V, C];  ids i64 of any shape;  y [ids..., C]
/// Grad    dweight[v] = Σ gy over the positions where ids = v
/// Saves   ids    Order  increasing position, no atomics: repeatable on every device
/// Source  none
/// Errors  shape: weight;  dtype: ids;  value: an id outside [0, V); on a device its row of y is 0, and the
///         error comes when the host next reads from it (tensor/core/index_fault.cuh)
Variable embedding(const Variable& weight, const Tensor& ids);

/// Rows of x: y[i] = x[ids[i]].
/// Shapes  x [N, ...];  ids i64 [M];  y [M, ...]
/// Grad, Saves, Order, Source, Errors  as embedding
Variable index_select(const Variable& x, const Tensor& ids);

}  // namespace lowbit
