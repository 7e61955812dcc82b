// AVX-512 forms of the inner loops of gemm_digits.h; the same bits as those in gemm_digits.cpp.
#if defined(__x86_64__)

#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12's own intrinsics headers
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include "tensor/engine/gemm_digits_kernels.h"

namespace lowbit::detail {

namespace {

#define LOWBIT_INLINE static inline __attribute__((always_inline))

LOWBIT_INLINE __mmask16 lanes(int64_t n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : __mmask16((1u << n) - 1); }

LOWBIT_INLINE __m512i magnitude(__m512 x) {
  return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
}
LOWBIT_INLINE __m512i fixed(__m512 x, __m512 v) { return _mm512_cvtps_epi32(_mm512_mul_ps(x, v)); }

/// Lane sums of 32-bit integers, added to two vectors of doubles.
LOWBIT_INLINE void add_sums(__m512i sum, double* to) {
  _mm512_storeu_pd(to, _mm512_add_pd(_mm512_loadu_pd(to), _mm512_cvtepi32_pd(_mm512_castsi512_si256(sum))));
  _mm512_storeu_pd(
      to + 8, _mm512_add_pd(_mm512_loadu_pd(to + 8), _mm512_cvtepi32_pd(_mm512_extracti64x4_epi64(sum, 1))));
}

template <bool kScaled>
LOWBIT_INLINE __m512 load_line(const SplitLineArgs& a, int64_t k) {
  const __mmask16 m = lanes(a.k - k);
  const __m512 x = _mm512_maskz_loadu_ps(m, a.x + k);
  if constexpr (!kScaled) return x;
  const __m512i steps =
      _mm512_mullo_epi32(_mm512_set1_epi32(int(a.scale_step)),
                         _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  return _mm512_mul_ps(
      x, _mm512_mask_i32gather_ps(_mm512_setzero_ps(), m, steps, a.scale + k * a.scale_step, 4));
}

template <bool kScaled>
void measure_line(const SplitLineArgs& a, SplitLines& out, int line) {
  __m512i top[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  __m512 squares[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int64_t k = 0; k < a.k; k += 32)
    for (int i = 0; i < 2; ++i) {
      const __m512 x = load_line<kScaled>(a, k + 16 * i);
      top[i] = _mm512_max_epi32(top[i], magnitude(x));
      squares[i] = _mm512_add_ps(squares[i], _mm512_mul_ps(x, x));
    }
  out.top[line] = _mm512_reduce_max_epi32(_mm512_max_epi32(top[0], top[1]));
  alignas(64) float each[kRowLanes];
  for (int i = 0; i < 2; ++i) _mm512_store_ps(each + 16 * i, squares[i]);
  float sum = 0;
  for (const float x : each) sum += x;
  out.squares[line] = sum;
}

template <bool kScaled, bool kFour>
void split_line(const SplitLineArgs& a, SplitLines& out, int line) {
  const __m512 v = _mm512_set1_ps(out.v[line]);
  const __m512i zero = _mm512_set1_epi32(digit_zero(a.digits)), flip = _mm512_set1_epi32(128);
  __m512i sum = _mm512_setzero_si512();
  alignas(64) double total[16] = {};
  const bool three = a.digits >= 3;
  for (int64_t k = 0; k < a.k; k += 16) {
    const __mmask16 m = lanes(a.k - k);
    const __m512i q = fixed(load_line<kScaled>(a, k), v), u = _mm512_add_epi32(q, zero);
    sum = _mm512_add_epi32(sum, q);
    _mm512_mask_cvtepi32_storeu_epi8(a.plane[0] + k, m, u);
    _mm512_mask_cvtepi32_storeu_epi8(a.plane[1] + k, m, _mm512_srli_epi32(u, 8));
    if (three) _mm512_mask_cvtepi32_storeu_epi8(a.plane[2] + k, m, _mm512_srli_epi32(u, 16));
    if constexpr (kFour)
      _mm512_mask_cvtepi32_storeu_epi8(a.plane[3] + k, m, _mm512_xor_si512(_mm512_srli_epi32(u, 24), flip));
    constexpr int64_t kSteps = kFour ? 8 : 128;  // |q| < 2^27, 2^23
    if (k / 16 % kSteps == kSteps - 1) add_sums(sum, total), sum = _mm512_setzero_si512();
  }
  add_sums(sum, total);
  out.sum[line] = 0;
  for (double t : total) out.sum[line] += t;
}

/// Bytes of four numbers, lane by lane: p[d] = (u0, u1, u2, u3)'s byte d.
LOWBIT_INLINE void four_bytes(const __m512i (&u)[4], __m512i (&p)[4]) {
  const __m512i even = _mm512_set1_epi32(0x00ff00ff), low = _mm512_set1_epi32(0xffff);
  const auto pair = [&](__m512i a, __m512i b) __attribute__((always_inline)) {  // a0 b0 a2 b2
    return _mm512_or_si512(_mm512_and_si512(a, even), _mm512_slli_epi32(_mm512_and_si512(b, even), 8));
  };
  const auto odd = [&](__m512i a, __m512i b) __attribute__((always_inline)) {  // a1 b1 a3 b3
    return _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi32(a, 8), even), _mm512_andnot_si512(even, b));
  };
  const __m512i e0 = pair(u[0], u[1]), e1 = pair(u[2], u[3]), o0 = odd(u[0], u[1]), o1 = odd(u[2], u[3]);
  p[0] = _mm512_or_si512(_mm512_and_si512(e0, low), _mm512_slli_epi32(e1, 16));
  p[1] = _mm512_or_si512(_mm512_and_si512(o0, low), _mm512_slli_epi32(o1, 16));
  p[2] = _mm512_or_si512(_mm512_srli_epi32(e0, 16), _mm512_andnot_si512(low, e1));
  p[3] = _mm512_or_si512(_mm512_srli_epi32(o0, 16), _mm512_andnot_si512(low, o1));
}

LOWBIT_INLINE __m512 load_panel(const SplitPanelArgs& a, int64_t k, int i) {
  const __m512 x =
      _mm512_maskz_loadu_ps(k < a.k ? lanes(a.cols - 16 * i) : __mmask16(0), a.x + k * a.next + 16 * i);
  return a.scale && k < a.k ? _mm512_mul_ps(x, _mm512_set1_ps(a.scale[k * a.scale_step])) : x;
}

template <int kV>
void measure_panel(const SplitPanelArgs& a, SplitLines& out) {
  __m512i top[kV];
  __m512 squares[kV][kColumnLanes];
  for (int i = 0; i < kV; ++i) {
    top[i] = _mm512_setzero_si512();
    for (auto& s : squares[i]) s = _mm512_setzero_ps();
  }
  for (int64_t k = 0; k < a.k; k += kColumnLanes)
    for (int j = 0; j < kColumnLanes; ++j)
      for (int i = 0; i < kV; ++i) {
        const __m512 x = load_panel(a, k + j, i);
        top[i] = _mm512_max_epi32(top[i], magnitude(x));
        squares[i][j] = _mm512_add_ps(squares[i][j], _mm512_mul_ps(x, x));
      }
  for (int i = 0; i < kV; ++i) {
    _mm512_store_si512(out.top + 16 * i, top[i]);
    __m512 sum = _mm512_setzero_ps();
    for (const __m512& s : squares[i]) sum = _mm512_add_ps(sum, s);
    _mm512_store_ps(out.squares + 16 * i, sum);
  }
}

template <int kV, bool kFour>
void split_panel(const SplitPanelArgs& a, SplitLines& out) {
  const __m512i zero = _mm512_set1_epi32(digit_zero(a.digits)), flip = _mm512_set1_epi32(int(0x80808080u));
  __m512 v[kV];
  __m512i sum[kV];
  for (int i = 0; i < kV; ++i) v[i] = _mm512_load_ps(out.v + 16 * i), sum[i] = _mm512_setzero_si512();
  for (int64_t k = 0; k < a.k; k += 4) {
    uint32_t* const to = a.words + k / 4 * a.width;
    for (int i = 0; i < kV; ++i) {
      __m512i u[4], p[4];
      for (int j = 0; j < 4; ++j) {
        const __m512i q = fixed(load_panel(a, k + j, i), v[i]);
        sum[i] = _mm512_add_epi32(sum[i], q);
        u[j] = _mm512_add_epi32(q, zero);
      }
      four_bytes(u, p);
      for (int d = 0; d < 2; ++d)
        _mm512_storeu_si512(to + d * a.plane + 16 * i, _mm512_xor_si512(p[d], flip));
      if (a.digits >= 3) _mm512_storeu_si512(to + 2 * a.plane + 16 * i, _mm512_xor_si512(p[2], flip));
      if constexpr (kFour) _mm512_storeu_si512(to + 3 * a.plane + 16 * i, p[3]);
    }
    constexpr int64_t kSteps = kFour ? 2 : 32;  // four numbers each, |q| < 2^27, 2^23
    if (k / 4 % kSteps == kSteps - 1)
      for (int i = 0; i < kV; ++i) add_sums(sum[i], out.sum + 16 * i), sum[i] = _mm512_setzero_si512();
  }
  for (int i = 0; i < kV; ++i) add_sums(sum[i], out.sum + 16 * i);
}

template <int kDigits, bool kOffset>
void digit_sums(const DigitSums& a) {
  constexpr int kPlane = kMaxRows * kPanel;
  const __m512d b1 = _mm512_set1_pd(256), b2 = _mm512_set1_pd(65536), b3 = _mm512_set1_pd(16777216),
                row_unit = _mm512_set1_pd(a.row_unit), col_unit = _mm512_set1_pd(a.col_unit);
  for (int j = 0; j < a.cols; j += 8) {
    const auto mask = __mmask8(lanes(a.cols - j));
    const __m512d factor = _mm512_load_pd(a.col->factor + j),
                  add = _mm512_mul_pd(col_unit, _mm512_load_pd(a.col->add + j)),
                  offset = _mm512_load_pd(a.col->offset + j);
    for (int r = 0; r < a.rows; ++r) {
      const auto load = [&](int d) __attribute__((always_inline)) {
        return _mm512_cvtepi32_pd(
            _mm256_load_si256(reinterpret_cast<const __m256i*>(a.acc + d * kPlane + r * kPanel + j)));
      };
      // products with powers of two and sums of integers below 2^53: exact, so fma changes nothing
      __m512d sum = _mm512_fmadd_pd(load(1), b1, load(0));
      if constexpr (kDigits >= 3) sum = _mm512_fmadd_pd(load(2), b2, sum);
      if constexpr (kDigits == 4) sum = _mm512_fmadd_pd(load(3), b3, sum);
      sum = _mm512_add_pd(sum, _mm512_add_pd(_mm512_mul_pd(row_unit, _mm512_set1_pd(a.row->add[r])), add));
      __m512d y = _mm512_mul_pd(_mm512_mul_pd(_mm512_set1_pd(a.row->factor[r]), factor), sum);
      if constexpr (kOffset) y = _mm512_add_pd(y, _mm512_mul_pd(_mm512_set1_pd(a.row->offset[r]), offset));
      _mm256_mask_storeu_ps(a.y + r * a.ldy + j, mask, _mm512_cvtpd_ps(y));
    }
  }
}

/// Whether the vector loops read such a line; others go through the portable ones.
bool contiguous(const SplitLineArgs& a) { return a.step == 1 && (!a.scale || a.scale_step <= (1 << 24)); }

}  // namespace

void measure_line_avx512(const SplitLineArgs& a, SplitLines& out, int line) {
  if (!contiguous(a)) return digit_kernel(Isa::portable).measure_line(a, out, line);
  a.scale ? measure_line<true>(a, out, line) : measure_line<false>(a, out, line);
}

void measure_panel_avx512(const SplitPanelArgs& a, SplitLines& out) {
  if (a.col != 1) return digit_kernel(Isa::portable).measure_panel(a, out);
  a.cols <= 16 ? measure_panel<1>(a, out) : measure_panel<2>(a, out);
}

void split_line_avx512(const SplitLineArgs& a, SplitLines& out, int line) {
  if (!contiguous(a)) return digit_kernel(Isa::portable).line(a, out, line);
  static constexpr void (*table[2][2])(const SplitLineArgs&, SplitLines&, int) = {
      {split_line<false, false>, split_line<false, true>}, {split_line<true, false>, split_line<true, true>}};
  table[a.scale != nullptr][a.digits == kMaxDigits](a, out, line);
}

void split_panel_avx512(const SplitPanelArgs& a, SplitLines& out) {
  if (a.col != 1) return digit_kernel(Isa::portable).panel(a, out);
  static constexpr void (*table[2][2])(const SplitPanelArgs&, SplitLines&) = {
      {split_panel<1, false>, split_panel<1, true>}, {split_panel<2, false>, split_panel<2, true>}};
  table[a.cols > 16][a.digits == kMaxDigits](a, out);
}

void digit_sums_avx512(const DigitSums& a) {
  static constexpr void (*by_digits[3][2])(const DigitSums&) = {{digit_sums<2, false>, digit_sums<2, true>},
                                                                {digit_sums<3, false>, digit_sums<3, true>},
                                                                {digit_sums<4, false>, digit_sums<4, true>}};
  by_digits[a.digits - 2][a.offset](a);
}

}  // namespace lowbit::detail

#endif
