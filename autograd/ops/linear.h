#pragma once
// Products. Where both operands are coded, the forward is an exact integer product of the codes with scales,
// offsets and bias in its epilogue, and codes, not floats, are kept for the backward. Float products round
// their operands as Context::gemm says; bf16 activations are kept as such.

#include <cstdint>
#include <span>
#include <vector>

#include "autograd/core/variable.h"

namespace lowbit {

/// y = x · wᵀ + b
/// Shapes  x [..., K]; w [N, K]; b [N] or undefined; y [..., N]
/// Grad    dx = gy · w;  dw = gyᵀ · x;  db = Σ gy over rows
/// Saves   x and w (codes when coded; an integer product is made again for who needs y)
/// Order   products: docs/numerics.md, rules 7 and 8; db: reduce_sum, on CUDA the library's where floats
///         make dw
/// Source  none.  Integer form: scales · (u8 × s8 → s32) + a constant per output (docs/performance.md)
/// Errors  shape: weight.shape[1] must equal x.shape[-1]; bias length
Variable linear(const Variable& x, const Variable& w, const Variable& b);

/// A layer whose rows are cut into equal parts, an output each. `narrow`: of an x of floats the outputs are
/// rounded to bf16 where Context::gemm is bf16, once, after the bias (which is rounded too), and stored so.
struct LinearLayer {
  Variable w, b;
  int64_t parts = 1;
  bool narrow = false;
};
/// The same of several layers of one input: query, key and value. On CUDA integer products are one launch,
/// and backward by digits two.   Grad  dx is the sum from the last output to the first
std::vector<Variable> linear_outputs(const Variable& x, std::span<const LinearLayer> layers);

/// y = a · b over the last two dimensions, leading dimensions equal; f32 operands are never rounded, because
/// y may be what is quantized.
/// Shapes  a [..., M, K]; b [..., K, N]; y [..., M, N]
/// Grad    da = gy · bᵀ;  db = aᵀ · gy
/// Errors  shape: inner extents, leading dimensions
Variable matmul(const Variable& a, const Variable& b);

/// Scores of multi-head attention, heads taken from the last dimension without moving data.
/// Shapes  q [B, N, H·D]; k [B, M, H·D]; y [B, H, N, M]
///          y[b,h,n,m] = factor · Σ_d q[b,n,hD+d] · k[b,m,hD+d]
///          or k [B, H, M, C], and q [B, N, C] is the query of all heads:
///          y[b,h,n,m] = factor · Σ_c q[b,n,c] · k[b,h,m,c]
///          bias [R, H, N, M] or undefined, R dividing B: bias[b mod R] is added, as for the windows of
///          images
/// Grad    dq = factor · gy · k;  dk = factor · gyᵀ · q;  dbias = Σ gy over the samples that share it
/// Errors  shape, dtype
Variable attention_scores(const Variable& q, const Variable& k, int64_t heads, double factor,
                          const Variable& bias = {});

/// Shapes  p [B, H, N, M]; v [B, M, H·D]; y [B, N, H·D]      y[b,n,hD+d] = Σ_m p[b,h,n,m] · v[b,m,hD+d]
/// Grad    dp = gy · vᵀ;  dv = pᵀ · gy
Variable attention_context(const Variable& p, const Variable& v, int64_t heads);

}  // namespace lowbit
