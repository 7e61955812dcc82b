#pragma once
// Products of floats with integer codes, computed on bf16 (GemmMode::parts). Internal to the engine.
//
// Codes of eight bits are exact in bf16, so only the floats are rounded: each is cut into one, two or three
// bf16 numbers (gemm_operand.h), which are multiplied by the codes one after the other, the smallest first.
//
//   v_k = fl(s_k·g_k);  Y = Σ_k p_m(v_k)·c_k;  then for i = m − 1 … 0:  Y = Y + Σ_k p_i(v_k)·c_k,
//   c_k = code_k + shift, every Σ in the order of gemm.h;
//   and where the codes have a scale of their own line or an offset   Y = float(w·Y + D·offset)  in f64
//
// s_k is the codes' scale where it runs along k or is one number, else 1 and w is the scale. D = α·Σ_k g_k
// (·offset_k, and offset 1, where the offset runs along k) in f64: blocks of 256 in increasing k, then the
// blocks in increasing order. With cuBLASLt each Σ has an order of its own, everything else stays.

#include "tensor/engine/gemm.h"

namespace lowbit::detail {

inline constexpr int kSumBlock = 256;

/// Whether the arguments have this form: one f32 operand and codes that are exact in bf16, no bias, beta = 0.
/// A function of the arguments alone.
bool parts_apply(const GemmArgs& g);

/// sums[batch, line] = alpha · Σ_k x (· e); partial [batch, line, blocks of k].
struct LineSumArgs {
  GemmOperand floats;
  const float* e = nullptr;  ///< or null: 1
  GemmOperand::Strides e_stride;
  int64_t batch[kMaxBatchDims], lines, k;
  double alpha;
  double *partial, *sums;

  LOWBIT_HD int64_t blocks() const { return (k + kSumBlock - 1) / kSumBlock; }
  LOWBIT_HD int64_t all_lines() const { return batch[0] * batch[1] * batch[2] * lines; }
  LOWBIT_HD void block(int64_t line, int64_t b) const {
    const int64_t flat = line / lines, rest = flat / batch[2];
    const BatchIndex i{{rest / batch[1], rest % batch[1], flat % batch[2]}};
    const int64_t at = i.offset(floats.stride.batch) + line % lines * floats.stride.row,
                  e_at = i.offset(e_stride.batch), end = (b + 1) * kSumBlock < k ? (b + 1) * kSumBlock : k;
    double sum = 0;
    for (int64_t j = b * kSumBlock; j < end; ++j) {
      const double x = double(static_cast<const float*>(floats.data)[at + j * floats.stride.k]);
      sum += e ? x * double(e[e_at + j * e_stride.k]) : x;
    }
    partial[line * blocks() + b] = sum;
  }
  LOWBIT_HD void total(int64_t line) const {
    double sum = 0;
    for (int64_t b = 0; b < blocks(); ++b) sum += partial[line * blocks() + b];
    sums[line] = alpha * sum;
  }
};
extern KernelSlot<LineSumArgs> line_sums;

/// C = float(w·C + D·offset) of every element.
struct PartsFinishArgs {
  GemmArgs g;
  bool codes_first;              ///< the codes are A: their lines are the rows of C
  const double* sums = nullptr;  ///< [batch, lines of floats], or null: no offset

  LOWBIT_HD int64_t elements() const { return g.batch[0] * g.batch[1] * g.batch[2] * g.m * g.n; }
  LOWBIT_HD void element(int64_t e) const {
    const int64_t n = e % g.n, m = e / g.n % g.m, flat = e / g.n / g.m;
    const GemmOperand& codes = codes_first ? g.a : g.b;
    const int64_t line = codes_first ? m : n, other = codes_first ? n : m, others = codes_first ? g.n : g.m;
    const BatchIndex i = BatchIndex::of(g, flat);
    float& c = static_cast<float*>(g.c)[i.offset(g.c_batch) + m * g.c_row + n * g.c_col];
    double y = double(c);
    if (codes.scale_stride.row)
      y *= double(codes.scale[i.offset(codes.scale_stride.batch) + line * codes.scale_stride.row]);
    if (sums) {
      const auto& os = codes.offset_stride;
      y += sums[flat * others + other] *
           (os.k ? 1.0 : double(codes.offset[i.offset(os.batch) + line * os.row]));
    }
    c = float(y);
  }
};
extern KernelSlot<PartsFinishArgs> parts_finish;

/// The product on a device; `g` as parts_apply saw it.
void gemm_parts(const GemmArgs& g, int parts, Device d);

}  // namespace lowbit::detail
