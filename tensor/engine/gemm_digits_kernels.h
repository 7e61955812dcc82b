#pragma once
// Inner loops of gemm_digits.h: floats into digits, sums of digits into results. Internal to the engine.

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

#include "tensor/engine/digit_terms.h"
#include "tensor/engine/gemm_kernels.h"

namespace lowbit::detail {

/// Lines of one operand: the bits of the largest magnitude, Σ x² in f32, v, Σ q.
struct SplitLines {
  alignas(64) int32_t top[kPanel] = {};
  alignas(64) float squares[kPanel] = {};
  alignas(64) float v[kPanel] = {};
  alignas(64) double sum[kPanel] = {};
};

/// k floats of one line into unsigned bytes, plane by plane. scale: one factor for every k, or null.
struct SplitLineArgs {
  const float* x;
  int64_t step, k;
  const float* scale;
  int64_t scale_step;
  int digits;
  uint8_t* plane[kMaxDigits];
};

/// `cols` lines, k of each, into words of four k: signed bytes, `width` words per step, planes `plane` words
/// apart.
struct SplitPanelArgs {
  const float* x;
  int64_t col, next, k;  ///< strides between lines and between two k
  const float* scale;
  int64_t scale_step;
  int cols, digits, width;
  uint32_t* words;
  int64_t plane;
};

/// y[r, j] = row.factor · col.factor · (Σ_d 256^d·acc_d + row_unit · row.add + col_unit · col.add)
///           (+ row.offset · col.offset)
struct DigitLines {
  alignas(64) double factor[kPanel] = {}, add[kPanel] = {}, offset[kPanel] = {};
  int digits = 0, range_count = 0;  ///< of floats; ranges of words that have a fourth digit (columns only)
};
struct DigitSums {
  const int32_t* acc;  ///< [digits][kMaxRows][kPanel]
  int rows, cols, digits;
  bool offset;
  const DigitLines *row, *col;
  double row_unit, col_unit;
  float* y;
  int64_t ldy;
};

/// Measuring fills top and squares; splitting reads v and writes digits and Σ q.
struct DigitKernel {
  void (*measure_line)(const SplitLineArgs&, SplitLines& out, int i);
  void (*measure_panel)(const SplitPanelArgs&, SplitLines& out);
  void (*line)(const SplitLineArgs&, SplitLines& out, int i);
  void (*panel)(const SplitPanelArgs&, SplitLines& out);
  void (*sums)(const DigitSums&);
};

DigitKernel digit_kernel(Isa isa);

void measure_line_avx512(const SplitLineArgs&, SplitLines& out, int i);
void measure_panel_avx512(const SplitPanelArgs&, SplitLines& out);
void split_line_avx512(const SplitLineArgs&, SplitLines& out, int i);
void split_panel_avx512(const SplitPanelArgs&, SplitLines& out);
void digit_sums_avx512(const DigitSums&);
void measure_line_avx2(const SplitLineArgs&, SplitLines& out, int i);
void measure_panel_avx2(const SplitPanelArgs&, SplitLines& out);
void split_line_avx2(const SplitLineArgs&, SplitLines& out, int i);
void split_panel_avx2(const SplitPanelArgs&, SplitLines& out);
void digit_sums_avx2(const DigitSums&);

}  // namespace lowbit::detail
