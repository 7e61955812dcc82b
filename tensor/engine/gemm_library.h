#pragma once
// Float products by cuBLASLt. Internal to the engine.
//
// Operands f32 (as they are or rounded to tf32 by the library) or bf16, sums f32, the result f32 or, of bf16
// operands, bf16 with a bias of bf16 (the library has no other), the bias or the sums of an operand's lines
// (a bias gradient) in the epilogue. The library's GELU is the tanh form; ours is the exact one, a pass of
// its own. For each form of a product (extents, strides, types, alignments) the library's heuristic is asked
// once; it may use 32 MiB of scratch memory, which is allocated once per device, and no split of the
// contraction but those that are added in the type of the sums in a fixed order. So a run has the same bits
// each time, on the same card with the same version of the library.
//
// What is not made here has the kernel of gemm_cuda.cu: empty products, results without a contiguous
// dimension, forms for which the library has no algorithm.

#include <algorithm>
#include <optional>

#include "tensor/engine/gemm.h"

namespace lowbit::detail {

/// How an operand lies in memory: lines of k, or lines of its own dimension.
struct OperandLines {
  bool along_k;
  int64_t pitch;  ///< elements from line to line
};
/// Nothing where the library cannot read it: no contiguous dimension, or lines that overlap.
inline std::optional<OperandLines> library_lines(const GemmOperand& o, int64_t rows, int64_t k) {
  if (o.stride.k == 1 && (o.stride.row >= k || rows == 1))
    return OperandLines{true, std::max(o.stride.row, k)};
  if (o.stride.row == 1 && (o.stride.k >= rows || k == 1))
    return OperandLines{false, std::max(o.stride.k, rows)};
  return {};
}

/// False where the product does not have the form; nothing has been done then.
bool gemm_library(const GemmArgs& g, Stream stream);

}  // namespace lowbit::detail
