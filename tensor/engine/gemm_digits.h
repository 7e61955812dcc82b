#pragma once
// Products of floats with integer codes, computed on integers (GemmArgs::digits). Internal to the engine.
//
// Along the contracted dimension the floats of one line (a row of A, a column of B) become fixed-point
// numbers of 24 bits (two digits: 16) under one scale, and these are cut into bytes, one exact integer
// product each:
//
//   F = max_k |g_k·s_k|,  v = (2^23 − 2) / F,  q_k = rint(g_k·s_k·v),  q_k + 2^23 = Σ_i 256^i·byte_i
//   Y = float((α/v · w)·Σ_k q_k·(code_k + shift) + D·offset)                     in f64, the sums exact
//
// s_k is the codes' scale where it runs along k (then w = 1), else 1 and w is the scale. D = α/v · Σ_k q_k;
// with s_k, or an offset along k, D = α·Σ_k g_k (·offset_k) in f64: lane j of 8 adds the terms j, j + 8, …,
// then lane i < w adds lane i + w for w = 4, 2, 1. The error of q is half a unit and one rounding of f32: at
// most 1.2e-7·F, or 3e-5·F with two digits.
//
// Where a few values dominate a line, 24 bits under F are too coarse for all the others: a line of three
// digits with F > 12 · the root mean square of its values gets v = 16·(2^23 − 2) / F and a fourth digit,
// which is multiplied for the steps of k only in which a column of the panel has one.
//
// Nothing else has an order, because integer sums are exact; the mean square alone is a float sum, in an
// order of its own (gemm_digits_kernels.h). A line that holds a value which is not finite gives NaN. Lines
// whose F is below 3e-32 lose precision.

#include "tensor/engine/gemm.h"

namespace lowbit::detail {

/// Whether the arguments have this form: one f32 operand and codes, no bias, beta = 0, sums within 32 bits. A
/// function of the arguments alone.
bool digits_apply(const GemmArgs& g);

/// What both devices derive from the arguments. The order of a line's mean square follows the layout.
struct DigitPlan {
  bool floats_as_rows;  ///< order of rows: numbers that lie side by side, or far apart in both directions
  bool heavy_allowed;   ///< sums with a fourth digit stay below 2^53
};
DigitPlan digit_plan(const GemmArgs& g);

/// A line of floats after measuring (CUDA).
struct DigitLine {
  double factor, sum, offset;  ///< alpha / v, Σ q, D
  float v;
  int digits;
};

/// Sums of the columns of packed floats: out[n] = Σ_m x[m, n], in the order of tensor/engine/column.h.
struct ColumnSumArgs {
  const float* x = nullptr;
  int64_t rows = 0, cols = 0;
  float *out = nullptr, *work = nullptr;  ///< work: column_workspace() (CUDA)
};

/// Products of which none reads what another writes, and sums beside them. On CUDA two kernels: one measures
/// the lines of floats of all, one multiplies.
inline constexpr int kDigitSums = 4;
struct DigitProducts {
  int count = 0, sums = 0;
  /// digits_apply() but for beta, with `digits` set. beta = 1: the product is added to what the one before it
  /// wrote, C = fl(C + fl(Y)), both without batches; on the CPU `work` is then an f32 [m, n].
  GemmArgs product[kProductsTogether];
  ColumnSumArgs sum[kDigitSums];
};
extern KernelSlot<DigitProducts> digit_products;

}  // namespace lowbit::detail
