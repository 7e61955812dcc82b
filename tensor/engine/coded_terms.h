#pragma once
// The arithmetic of gemm_int8.h around the integer sums, written once for both devices: how codes enter the
// product, what every row and column adds, and the expression of one result. Internal to the engine.

#include "tensor/engine/gemm_int8.h"
#include "tensor/engine/gemm_kernels.h"
#include "tensor/hd/math.h"

namespace lowbit::detail {

/// The bytes of an operand in the product and the constant that turns them back into P or R.
struct Packing {
  int zero;        // packed = code − zero
  double shift;    // value  = packed + shift
  int max_packed;  // bound of |packed|
  double max_value;
  int factor;  // 1, or 2 for half-integer values; 0 when factor · value is no integer
};

/// Decisions that the arguments alone determine.
struct CodedPlan {
  Packing a, b;  // unsigned and signed bytes
  IntOut out;
  int factor;  // of the int32 in the result: 1, 2 or 4
  CodedPlan() = default;
  explicit CodedPlan(const CodedGemmArgs& g);
  LOWBIT_HD double k_shift(int64_t k) const { return double(k) * a.shift * b.shift; }
};

/// rint(max(min((x − b) / a, hi), lo)): half to even, true division.
LOWBIT_HD int32_t quantized_code(float x, float b, float a, float lo, float hi) {
  const float u = (x - b) / a;
  const float low = u < hi ? u : hi;
  return int32_t(math::rint(low > lo ? low : lo));
}

/// Offsets along k: of one batch, or null.
LOWBIT_HD const float* batch_offsets(const GemmOperand& o, const BatchIndex& i) {
  return o.offset ? o.offset + i.offset(o.offset_stride.batch) : nullptr;
}

/// Σ_k b_k and Σ_k b_k·e_k.
struct OffsetSums {
  double b, be;
};
LOWBIT_HD OffsetSums offset_sums(const CodedGemmArgs& g, const BatchIndex& i) {
  const float *const b = batch_offsets(g.a, i), *const e = batch_offsets(g.b, i);
  OffsetSums s{};
  for (int64_t k = 0; b && k < g.k; ++k) {
    const double value = double(b[k * g.a.offset_stride.k]);
    s.b += value;
    if (e) s.be += value * double(e[k * g.b.offset_stride.k]);
  }
  return s;
}

/// Σ_k of one operand times the shift of the other, in the result's int32.
LOWBIT_HD int32_t shift_correction(double shift, int factor, int32_t sum) {
  return int32_t(uint32_t(int64_t(shift * factor) * sum));
}

/// What a row adds. `sum`: Σ_k of its packed codes; `weighted`: Σ_k e_k · (packed + shift), for e along k.
struct RowTerms {
  int32_t correction;
  float scale;
  double sum, a, z, q;
};
LOWBIT_HD RowTerms row_terms(const CodedGemmArgs& g, const CodedPlan& p, const BatchIndex& i, int64_t row,
                             int32_t sum, double weighted, const OffsetSums& offsets) {
  RowTerms t{0, 1, 0, 0, 0, 0};
  const auto &as = g.a.scale_stride, &bs = g.b.scale_stride;
  if (p.out != IntOut::f64) t.correction = shift_correction(p.b.shift, p.factor, sum);
  if (p.out == IntOut::s32) return t;
  const float scale = g.a.scale[i.offset(as.batch) + row * as.row];
  if (p.out == IntOut::f32) {  // alpha and the factor go where the scale varies; the other side is 1
    const bool b_varies = bs.row != 0;
    const double w = b_varies ? 1.0 : double(g.b.scale[i.offset(bs.batch)]);
    if (!b_varies || as.row != 0) t.scale = float(g.alpha / p.factor * w * double(scale));
    return t;
  }
  t.sum = p.b.shift * sum;
  t.a = double(scale);
  t.q = t.a * (sum + double(g.k) * p.a.shift) + offsets.b;  // Σ_k X̂
  const float* const e = batch_offsets(g.b, i);
  if (e && !g.b.offset_stride.row)
    t.z = g.alpha * (g.b.offset_stride.k ? t.a * weighted + offsets.be : double(e[0]) * t.q);
  return t;
}

/// What a column adds; `weighted`: Σ_k b_k · (packed + shift), for b along k.
struct ColTerms {
  int32_t correction;
  float scale, bias;
  double sum, w, u, e;
};
LOWBIT_HD ColTerms col_terms(const CodedGemmArgs& g, const CodedPlan& p, const BatchIndex& i, int64_t col,
                             int32_t sum, double weighted) {
  ColTerms t{0, 1, 0, 0, 0, 0, 0};
  const auto &as = g.a.scale_stride, &bs = g.b.scale_stride, &es = g.b.offset_stride;
  if (g.bias) t.bias = static_cast<const float*>(g.bias)[col];
  if (p.out != IntOut::f64)
    t.correction = int32_t(uint32_t(shift_correction(p.a.shift, p.factor, sum)) +
                           uint32_t(int64_t(p.k_shift(g.k) * p.factor)));
  if (p.out == IntOut::s32) return t;
  const float scale = g.b.scale[i.offset(bs.batch) + col * bs.row];
  if (p.out == IntOut::f32) {
    const double a = as.row != 0 ? 1.0 : g.alpha / p.factor * double(g.a.scale[i.offset(as.batch)]);
    if (bs.row != 0) t.scale = float(a * double(scale));
    return t;
  }
  t.sum = p.a.shift * sum + p.k_shift(g.k);
  t.w = g.alpha * double(scale);
  if (const float* const b = batch_offsets(g.a, i))
    t.u = g.a.offset_stride.k ? weighted : double(b[0]) * (sum + double(g.k) * p.b.shift);
  if (g.b.offset && es.row) t.e = g.alpha * double(g.b.offset[i.offset(es.batch) + col * es.row]);
  return t;
}

/// One result from the sum of packed products. The vector kernels of the CPU must equal it.
LOWBIT_HD int32_t corrected(int32_t acc, int shift, int32_t row, int32_t col) {
  return int32_t((uint32_t(acc) << shift) + uint32_t(row) + uint32_t(col));
}
LOWBIT_HD float scaled_result(int32_t sum, float row_scale, float col_scale, float bias) {
  return math::fma(float(sum), row_scale * col_scale, bias);
}
LOWBIT_HD float exact_result(int32_t acc, const RowTerms& r, const ColTerms& c) {
  const double sum = double(acc) + r.sum + c.sum;
  const double y = math::fma(math::fma(sum, r.a, c.u), c.w, r.z);
  return float(math::fma(c.e, r.q, y) + double(c.bias));
}

}  // namespace lowbit::detail
