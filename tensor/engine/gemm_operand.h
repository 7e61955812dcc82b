#pragma once
// Operands of products in another form: rounded to bf16 or tf32, cut into parts of bf16, made of codes, or
// packed. Internal to the engine.
//
// Part i of a number v is  p_i = bf16(v − p_0 − … − p_{i−1}):  eight bits of mantissa each, so that three
// hold all of an f32 (two all but the last eight bits). The differences are exact.

#include "tensor/engine/gemm.h"
#include "tensor/hd/half.h"
#include "tensor/hd/tf32.h"

namespace lowbit::detail {

inline bool is_codes(const GemmOperand& o) { return o.dtype == DType::u8 || o.dtype == DType::i8; }

/// Element numbers of one position of an operand.
struct OperandPlace {
  int64_t data, scale, offset;
  LOWBIT_HD static OperandPlace of(const GemmOperand& o, const BatchIndex& i, int64_t row, int64_t k) {
    return {i.offset(o.stride.batch) + row * o.stride.row + k * o.stride.k,
            i.offset(o.scale_stride.batch) + row * o.scale_stride.row + k * o.scale_stride.k,
            i.offset(o.offset_stride.batch) + row * o.offset_stride.row + k * o.offset_stride.k};
  }
};

/// The number at a place: floats, times a scale where they have one; codes, bare where they have no scale.
LOWBIT_HD float operand_value(const GemmOperand& o, const OperandPlace& at) {
  float x;
  if (o.dtype == DType::f32)
    x = static_cast<const float*>(o.data)[at.data];
  else if (o.dtype == DType::bf16)
    x = static_cast<const bf16*>(o.data)[at.data];
  else
    x = (o.dtype == DType::u8 ? float(static_cast<const uint8_t*>(o.data)[at.data])
                              : float(static_cast<const int8_t*>(o.data)[at.data])) +
        float(o.shift);
  if (o.scale) x = o.scale[at.scale] * x;
  return o.offset ? x + o.offset[at.offset] : x;
}

/// to[part, batch, line, i] ← the operand, where i runs along k (k_inner) or along the rows.
struct OperandCopyArgs {
  GemmOperand from;
  int64_t batch[kMaxBatchDims] = {1, 1, 1};  ///< 1 where the operand repeats
  int64_t rows = 0, k = 0;
  void* to = nullptr;
  DType dtype = DType::f32;  ///< f32, bf16
  int parts = 1;             ///< of bf16
  bool k_inner = true, tf32 = false;
  int64_t pitch = 0;  ///< elements from line to line

  LOWBIT_HD int64_t inner() const { return k_inner ? k : rows; }
  LOWBIT_HD int64_t outer() const { return k_inner ? rows : k; }
  LOWBIT_HD int64_t lines() const { return batch[0] * batch[1] * batch[2] * outer(); }
  /// Where a line, of all batches, begins.
  struct Line {
    OperandPlace from;
    int64_t to;
  };
  LOWBIT_HD Line line(int64_t n) const {
    const int64_t flat = n / outer(), at = n % outer(), rest = flat / batch[2];
    const BatchIndex index{{rest / batch[1], rest % batch[1], flat % batch[2]}};
    return {OperandPlace::of(from, index, k_inner ? at : 0, k_inner ? 0 : at), n * pitch};
  }
  LOWBIT_HD int64_t step(const GemmOperand::Strides& s) const { return k_inner ? s.k : s.row; }
  LOWBIT_HD void element(const Line& l, int64_t i) const {
    float v =
        operand_value(from, {l.from.data + i * step(from.stride), l.from.scale + i * step(from.scale_stride),
                             l.from.offset + i * step(from.offset_stride)});
    const int64_t place = l.to + i;
    if (dtype == DType::f32) {
      static_cast<float*>(to)[place] = tf32 ? round_tf32(v) : v;
      return;
    }
    for (int p = 0; p < parts; ++p) {
      const bf16 part(v);
      static_cast<bf16*>(to)[p * lines() * pitch + place] = part;
      v -= float(part);
    }
  }
};
extern KernelSlot<OperandCopyArgs> copy_operand;

/// An operand in its new form, and the memory it lies in.
struct OperandCopy {
  Tensor memory;
  GemmOperand operand;  ///< part 0
  int64_t part = 0;     ///< elements from part to part
};
/// `from` of a product with `rows` along its own dimension; the orientation stays.
OperandCopy copy_of(const GemmOperand& from, const ProductArgs& g, int64_t rows, DType dtype, int parts,
                    bool tf32, Device d);

/// Brings the operands into the form that the mode asks for. What is returned must live until the product has
/// been started.
struct PreparedOperands {
  Tensor a, b;
};
PreparedOperands prepare_operands(GemmArgs& g, const GemmMode& mode, Device d);

}  // namespace lowbit::detail
