// Portable micro-kernels; they define the results of the others.

#include <algorithm>
#include <cmath>

#include "tensor/engine/coded_terms.h"

namespace lowbit::detail {

namespace {

template <class T, int kRows, int kCols>
void tile_block(const Tile<T>& t, int r0, int rows, int c0, int cols) {
  T s[kRows][kCols] = {};
  for (int64_t k = 0; k < t.k; ++k)
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < kCols; ++c)
        s[r][c] = std::fma(t.a[k * t.a_k + (r0 + r) * t.a_row], t.b[k * t.b_step + c0 + c], s[r][c]);
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < cols; ++c) {
      T& out = t.c[(r0 + r) * t.ldc + c0 + c];
      const T v = t.beta == 0 ? t.alpha * s[r][c] : std::fma(t.alpha, s[r][c], t.beta * out);
      out = t.bias ? v + t.bias[c0 + c] : v;
    }
}

template <class T>
void tile_portable(const Tile<T>& t) {
  constexpr int kRows = 4, kCols = 16;
  for (int c0 = 0; c0 < t.cols; c0 += kCols)
    for (int r0 = 0; r0 < t.rows; r0 += kRows)
      tile_block<T, kRows, kCols>(t, r0, std::min(kRows, t.rows - r0), c0, std::min(kCols, t.cols - c0));
}

void tile_int8_portable(const IntTile& t) {
  const auto* a = reinterpret_cast<const uint8_t*>(t.a);
  const auto* b = reinterpret_cast<const int8_t*>(t.b);
  int32_t acc[kMaxRows * kPanel] = {};
  for_ranges(t, [&](int64_t begin, int64_t end) {
    for (int64_t w = begin; w < end; ++w)
      for (int r = 0; r < t.rows; ++r)
        for (int c = 0; c < t.cols; ++c)
          for (int i = 0; i < 4; ++i)
            acc[r * kPanel + c] += int(a[(w * t.rows + r) * 4 + i]) * int(b[(w * t.b_step + c) * 4 + i]);
  });
  int_epilogue(t, 0, t.rows, 0, t.cols, acc);
}

}  // namespace

void int_epilogue(const IntTile& t, int row0, int rows, int col0, int cols, const int32_t* acc) {
  const RowInfo& ri = *t.row;
  const ColInfo& ci = *t.col;
  for (int r = row0; r < row0 + rows; ++r, acc += kPanel)
    for (int c = col0; c < col0 + cols; ++c) {
      const int32_t s = acc[c - col0], v = corrected(s, t.shift, ri.correction[r], ci.correction[c]);
      if (t.out == IntOut::s32) {
        static_cast<int32_t*>(t.c)[r * t.ldc + c] = v;
        continue;
      }
      const RowTerms row{0, 0, ri.sum[r], ri.a[r], ri.z[r], ri.q[r]};
      const ColTerms col{0, 0, ci.bias[c], ci.sum[c], ci.w[c], ci.u[c], ci.e[c]};
      static_cast<float*>(t.c)[r * t.ldc + c] = t.out == IntOut::f32
                                                    ? scaled_result(v, ri.scale[r], ci.scale[c], col.bias)
                                                    : exact_result(s, row, col);
    }
}

FloatKernel<double> gemm_kernel_f64() { return {4, false, tile_portable<double>}; }

FloatKernel<float> gemm_kernel_f32(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::avx512) return {14, true, gemm_tile_f32_avx512};
  if (isa == Isa::avx2) return {6, true, gemm_tile_f32_avx2};
#endif
  (void)isa;
  return {8, false, tile_portable<float>};
}

IntKernel gemm_kernel_int8(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::amx) return {32, true, true, gemm_tile_int8_amx, amx_begin, amx_end, amx_flush};
  if (isa == Isa::avx512) return {14, false, true, gemm_tile_int8_avx512};
  if (isa == Isa::avx2) return {12, false, true, gemm_tile_int8_avx2};
#endif
  (void)isa;
  return {8, false, false, tile_int8_portable};
}

}  // namespace lowbit::detail
