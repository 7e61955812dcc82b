#pragma once
// Float matrix products C = alpha · A·B + beta · C (+ bias) with any strides: transposes, heads inside [B, N,
// H, D] and slices of a fused qkv tensor need no copies. Operands are f32 or bf16 (f64 for gradient checks)
// or integer codes, which become floats while they are packed.
//
// Numerics: K is cut into ceil(K / 384) blocks of equal length, rounded up to 8. Inside a block one element
// is
//   s = fma(a_k, b_k, s),  k increasing from s = 0
// and over blocks in increasing order  c = fma(alpha, s, c),  from c = beta · C (alpha · s alone when beta =
// 0, C is not read); at last  c + bias[n], rounded half to even where C is bf16.  The bits do not depend on
// threads, instruction set, tiling or batching. GemmMode::inputs rounds the operands first; GemmMode::library
// gives the sums on CUDA to cuBLASLt, in an order of its own (docs/numerics.md, rule 7).

#include <span>

#include "tensor/core/coded.h"
#include "tensor/core/context.h"
#include "tensor/core/kernel_slot.h"
#include "tensor/core/tensor.h"
#include "tensor/hd/macros.h"

namespace lowbit {

inline constexpr int kMaxBatchDims = 3;

/// One matrix operand in a batch. `row` is the dimension it shares with the result (m of A, n of B), `k` the
/// contracted one. Strides in elements; 0 repeats.
struct GemmOperand {
  struct Strides {
    int64_t row = 0, k = 0, batch[kMaxBatchDims] = {};
  };
  const void* data = nullptr;
  DType dtype = DType::f32;  ///< f32, bf16, f64; u8, i8: value = fl(fl(scale · (code + shift)) + offset)
  Strides stride;
  const float* scale = nullptr;   ///< codes only
  const float* offset = nullptr;  ///< codes only; may be null
  Strides scale_stride, offset_stride;
  double shift = 0;
  int lo = -128, hi = 255;  ///< bounds of the codes
};

/// What float and integer products share.
struct ProductArgs {
  int64_t m = 0, n = 0, k = 0;
  int64_t batch[kMaxBatchDims] = {1, 1, 1};
  GemmOperand a, b;
  void* c = nullptr;
  DType c_dtype = DType::f32;
  int64_t c_row = 0, c_col = 1, c_batch[kMaxBatchDims] = {};
  const void* bias = nullptr;  ///< [n], contiguous, of C's dtype; or null
  double alpha = 1;
};
struct GemmArgs : ProductArgs {  ///< C f32, or f64 with f64 operands; bf16 on CUDA, where beta = 0
  double beta = 0;
  int digits = 0;           ///< of gemm_digits.h: 2 or 3 there
  void* work = nullptr;     ///< the same on CUDA: a DigitLine for each line of floats
  bool library = false;     ///< cuBLASLt on CUDA, where it has the form
  bool tf32 = false;        ///< cuBLASLt rounds f32 operands to tf32
  float* a_sums = nullptr;  ///< [m]: what cuBLASLt may add up beside the product; it then says so in *summed
  bool* summed = nullptr;
};
extern KernelSlot<GemmArgs> gemm_kernel;

/// How a product is computed where there is a choice. The default has the same bits on every device.
struct GemmMode {
  MathMode inputs = MathMode::f32;  ///< what operands are rounded to
  int digits = 0;  ///< 2, 3: floats times codes as integer products where that is possible (gemm_digits.h)
  int parts = 0;   ///< 1, 2, 3: floats times codes as products of bf16 where that is possible (gemm_parts.h)
  bool library = false;  ///< GemmArgs::library
};

/// Position in the batch dimensions.
struct BatchIndex {
  int64_t i[kMaxBatchDims];
  LOWBIT_HD static BatchIndex of(const ProductArgs& g, int64_t flat) {
    const int64_t rest = flat / g.batch[2];
    return {{rest / g.batch[1], rest % g.batch[1], flat % g.batch[2]}};
  }
  LOWBIT_HD int64_t offset(const int64_t (&stride)[kMaxBatchDims]) const {
    return i[0] * stride[0] + i[1] * stride[1] + i[2] * stride[2];
  }
};

/// A tensor or codes as an operand [..., rows, cols]; t() swaps the last two dimensions without a copy.
class GemmInput {
 public:
  GemmInput(const Tensor& t) : values_(t) {}
  GemmInput(const Coded& c) : values_(c.codes), coded_(c), is_coded_(true) {}
  GemmInput t() const {
    GemmInput r = *this;
    r.transposed_ = !transposed_;
    return r;
  }
  bool coded() const { return is_coded_; }
  bool transposed() const { return transposed_; }
  const Tensor& values() const { return values_; }
  int64_t rows() const { return values_.size(transposed_ ? -1 : -2); }
  int64_t cols() const { return values_.size(transposed_ ? -2 : -1); }
  std::string str() const;
  void check(const char* op) const;  ///< dimensions, dtypes, extents of scale and offset

  /// For a result with `batch_dims` leading dimensions; k_last: the contracted dimension is the last one.
  GemmOperand operand(int batch_dims, bool k_last) const;

 private:
  Tensor values_;
  Coded coded_;
  bool is_coded_ = false, transposed_ = false;
};

/// Leading dimensions of a product, broadcast; at most three. Throws `<op>: …`.
Shape gemm_batch_shape(const char* op, const GemmInput& a, const GemmInput& b);

/// out[..., M, N] = alpha · a[..., M, K] · b[..., K, N] + beta · out (+ bias[N]); leading dimensions
/// broadcast. f32, operands f32 or bf16 (or f64: all of them). Where beta = 0 and no operand is f64, out may
/// be bf16 as well: the f32 result rounded once; the bias is bf16 then, as libraries have it. Linear layer:
/// gemm(y, x, GemmInput(w).t(), bias); weight gradient: gemm(dw, GemmInput(dy).t(), x).
void gemm(Tensor& out, const GemmInput& a, const GemmInput& b, const Tensor& bias = {}, double alpha = 1,
          double beta = 0, const GemmMode& mode = {});

/// The same for f32 matrices, and a_sums[m] = Σ_k a[m, k] if cuBLASLt makes the product, from a as it is (not
/// cast to bf16 before), and has an algorithm that forms these sums from what it reads of a anyway: a bias
/// gradient beside the weight gradient. False: a_sums was not touched.
bool gemm_with_sums(Tensor& out, Tensor& a_sums, const GemmInput& a, const GemmInput& b,
                    const GemmMode& mode);

/// How many products one launch may hold.
inline constexpr int kProductsTogether = 6;

/// One of several products that do not read what another writes.
struct GemmProduct {
  Tensor out;
  GemmInput a, b;
  double alpha = 1;
  bool add =
      false;  ///< to the same out as the product before it: out = fl(out + product), no leading dimensions
};
/// out[n] = Σ_m x[m, n] of packed floats, numerics rule 4.
struct ColumnSums {
  Tensor out, x;
};
/// gemm() of each product, and the sums, by the kernel that the mode has for all of it; false where there is
/// none: nothing was done.
bool gemm_together(std::span<const GemmProduct> products, std::span<const ColumnSums> sums,
                   const GemmMode& mode);

/// gemm() into a new tensor.
Tensor matmul(const GemmInput& a, const GemmInput& b, const Tensor& bias = {}, double alpha = 1);

/// Length of the K blocks of the numerics contract.
int64_t gemm_k_block(int64_t k);

}  // namespace lowbit
