#pragma once
// Exact integer products u8/i8 × u8/i8 → s32, and the product of quantized operands built on them.
//
// Y = alpha · X̂·Ŵᵀ + bias,  X̂[m,k] = a_m·P + b_k,  P = code + shift,   Ŵ[n,k] = w_n·R + e,  R = code + shift
//   S[m,n] = Σ_k P·R                    an exact integer, or a multiple of ¼ (half-integer shifts)
// Without offsets     Y = fma(float(S'), s_m·s_n, bias_n)  in f32: S' = S times 1, 2 or 4 fits int32; the
// scales
//                     carry alpha and 1/2 or 1/4. At most three roundings: conversion, scale, fma.
// Otherwise           Y = float(fma(e_n, q_m, fma(fma(S, a_m, u_n), alpha·w_n, z_m)) + bias_n)
//                     in f64, one rounding; u_n = Σ_k b_k·R[n,k], z_m = alpha · Σ_k X̂[m,k]·e_k,
//                     q_m = Σ_k X̂[m,k] for offsets e_n of B along n.
// f64 is also used when S' could leave int32, a shift is no multiple of ½, or both scales vary and alpha is
// not a power of two. The choice depends on the arguments alone, so bits do not depend on threads,
// instruction set, tiling or batching.

#include "tensor/engine/gemm.h"

namespace lowbit {

/// a: codes [m, k]; b: codes [n, k]; scale per tensor, row or batch; offset scalar or along k, of b also
/// along n. C f32: Y.  C i32: Σ_k of the plain codes; scale, shift, offset, bias and alpha are unused.
struct CodedGemmArgs : ProductArgs {
  const void* packed_b = nullptr;  ///< panels of PackedCodes; b.data is then unused (CPU only)
  const float* quantize =
      nullptr;  ///< values whose codes rint(clamp((x − b_k) / a_m, lo, hi)) are written to a.data
  GemmOperand::Strides quantize_stride;
};
/// Products of which none reads what another writes, in one launch.
inline constexpr int kCodedTogether = 4;
struct CodedProducts {
  int count = 0;
  CodedGemmArgs product[kCodedTogether];
};
extern KernelSlot<CodedProducts> coded_products;

/// A matrix of codes [N, K] in the layout of the kernels; pack weights once per step.
class PackedCodes {
 public:
  bool defined() const { return data_.defined(); }
  const Coded& coded() const { return coded_; }
  const void* data() const { return data_.view().data; }

 private:
  friend PackedCodes pack_b(const Coded& b);
  Coded coded_;
  Tensor data_;
};

/// Packs two-dimensional codes [N, K]. The product reads scale and offset of the Coded, so keep them
/// unchanged.
PackedCodes pack_b(const Coded& b);

/// out[..., M, N] i32 = Σ_k a[..., M, K] · b[..., N, K] of the plain codes. B is n-major: GemmInput(v).t()
/// for a
/// [..., K, N] operand. Throws when K · max|a| · max|b| could leave int32; lo and hi of Coded bound the
/// values.
void gemm_int8(Tensor& out, const GemmInput& a, const GemmInput& b);

/// out[..., M, N] f32 = alpha · a[..., M, K] · b[..., N, K]ᵀ (+ bias[N]) of the values of the codes. Throws
/// for a scale along K (dequantize, use gemm), an offset of `a` along M, or a K beyond the int32 bound.
/// `quantize`: f32 values of a's shape; a's codes are then computed from them (shift must be 0) and written.
void coded_gemm(Tensor& out, const GemmInput& a, const GemmInput& b, const Tensor& bias = {},
                double alpha = 1, const Tensor& quantize = {});
void coded_gemm(Tensor& out, const GemmInput& a, const PackedCodes& b, const Tensor& bias = {},
                double alpha = 1, const Tensor& quantize = {});

/// The checked arguments of coded_gemm(), for lists of products and for kernels that contain one.
CodedGemmArgs coded_gemm_args(Tensor& out, const GemmInput& a, const GemmInput& b, const Tensor& bias = {},
                              double alpha = 1);

/// False when a scale runs along K: such operands have no integer product.
bool coded_gemm_supported(const GemmInput& a, const GemmInput& b);

/// codes[i] = rint(max(min((x[i] − b) / a, hi), lo)): one line, half to even, true division. `codes` is u8 or
/// i8.
void quantize_line(const float* x, int64_t step, int64_t n, float a, const float* b, int64_t b_step, float lo,
                   float hi, void* codes, int64_t codes_step);

}  // namespace lowbit
