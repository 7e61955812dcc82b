// AVX2 forms of the inner loops of gemm_digits.h; the same bits as those in gemm_digits.cpp.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "tensor/engine/gemm_digits_kernels.h"

namespace lowbit::detail {

namespace {

#define LOWBIT_INLINE static inline __attribute__((always_inline))

constexpr int kLanes = 8;

LOWBIT_INLINE __m256i lanes(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(std::min<int64_t>(n, kLanes))),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
LOWBIT_INLINE __m256 load_lanes(const float* x, int64_t n) {
  return n >= kLanes ? _mm256_loadu_ps(x) : _mm256_maskload_ps(x, lanes(n));
}
LOWBIT_INLINE __m256i magnitude(__m256 x) {
  return _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff));
}
LOWBIT_INLINE __m256i fixed(__m256 x, __m256 v) { return _mm256_cvtps_epi32(_mm256_mul_ps(x, v)); }

/// Lane sums of 32-bit integers, added to two vectors of doubles.
LOWBIT_INLINE void add_sums(__m256i sum, double* to) {
  const auto half = [&](double* p, __m128i x) __attribute__((always_inline)) {
    _mm256_storeu_pd(p, _mm256_add_pd(_mm256_loadu_pd(p), _mm256_cvtepi32_pd(x)));
  };
  half(to, _mm256_castsi256_si128(sum));
  half(to + 4, _mm256_extracti128_si256(sum, 1));
}

template <bool kScaled>
LOWBIT_INLINE __m256 load_line(const SplitLineArgs& a, int64_t k) {
  const int64_t left = a.k - k;
  if (left <= 0) return _mm256_setzero_ps();
  const __m256 x = load_lanes(a.x + k, left);
  if constexpr (!kScaled) return x;
  if (a.scale_step == 1) return _mm256_mul_ps(x, load_lanes(a.scale + k, left));
  const __m256i steps =
      _mm256_mullo_epi32(_mm256_set1_epi32(int(a.scale_step)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  return _mm256_mul_ps(x, _mm256_mask_i32gather_ps(_mm256_setzero_ps(), a.scale + k * a.scale_step, steps,
                                                   _mm256_castsi256_ps(lanes(left)), 4));
}

template <bool kScaled>
void measure_line(const SplitLineArgs& a, SplitLines& out, int line) {
  constexpr int kV = kRowLanes / kLanes;
  __m256i top[kV];
  __m256 squares[kV];
  for (int i = 0; i < kV; ++i) top[i] = _mm256_setzero_si256(), squares[i] = _mm256_setzero_ps();
  for (int64_t k = 0; k < a.k; k += kRowLanes)
#pragma GCC unroll 4
    for (int i = 0; i < kV; ++i) {
      const __m256 x = load_line<kScaled>(a, k + kLanes * i);
      top[i] = _mm256_max_epi32(top[i], magnitude(x));
      squares[i] = _mm256_add_ps(squares[i], _mm256_mul_ps(x, x));
    }
  alignas(32) int32_t most[kRowLanes];
  alignas(32) float each[kRowLanes];
  for (int i = 0; i < kV; ++i) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(most + kLanes * i), top[i]);
    _mm256_store_ps(each + kLanes * i, squares[i]);
  }
  out.top[line] = *std::max_element(most, most + kRowLanes);
  float sum = 0;
  for (const float x : each) sum += x;
  out.squares[line] = sum;
}

/// Byte d of 32 numbers in order.
LOWBIT_INLINE __m256i bytes_of(const __m256i (&u)[4], int d) {
  const __m256i low = _mm256_set1_epi32(0xff);
  const __m128i by = _mm_cvtsi32_si128(8 * d);
  const auto one = [&](int i) __attribute__((always_inline)) {
    return _mm256_and_si256(_mm256_srl_epi32(u[i], by), low);
  };
  const __m256i p =
      _mm256_packus_epi16(_mm256_packus_epi32(one(0), one(1)), _mm256_packus_epi32(one(2), one(3)));
  return _mm256_permutevar8x32_epi32(p, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

template <bool kScaled, bool kFour>
void split_line(const SplitLineArgs& a, SplitLines& out, int line) {
  const __m256 v = _mm256_set1_ps(out.v[line]);
  const __m256i zero = _mm256_set1_epi32(digit_zero(a.digits)), flip = _mm256_set1_epi8(char(128));
  __m256i sum = _mm256_setzero_si256();
  alignas(32) double total[kLanes] = {};
  constexpr int64_t kStep = 4 * kLanes;
  for (int64_t k = 0; k < a.k; k += kStep) {
    const int64_t left = std::min(a.k - k, kStep);
    __m256i u[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m256i q = fixed(load_line<kScaled>(a, k + kLanes * i), v);
      sum = _mm256_add_epi32(sum, q);
      u[i] = _mm256_add_epi32(q, zero);
    }
    const auto store = [&](int d, __m256i bytes) __attribute__((always_inline)) {
      if (left == kStep) return _mm256_storeu_si256(reinterpret_cast<__m256i*>(a.plane[d] + k), bytes);
      alignas(32) uint8_t tail[kStep];
      _mm256_store_si256(reinterpret_cast<__m256i*>(tail), bytes);
      std::memcpy(a.plane[d] + k, tail, size_t(left));
    };
    store(0, bytes_of(u, 0));
    store(1, bytes_of(u, 1));
    if (a.digits >= 3) store(2, bytes_of(u, 2));
    if constexpr (kFour) store(3, _mm256_xor_si256(bytes_of(u, 3), flip));
    constexpr int64_t kSteps = kFour ? 2 : 32;  // four numbers a lane each, |q| < 2^27, 2^23
    if (k / kStep % kSteps == kSteps - 1) add_sums(sum, total), sum = _mm256_setzero_si256();
  }
  add_sums(sum, total);
  out.sum[line] = 0;
  for (const double t : total) out.sum[line] += t;
}

/// Bytes of four numbers, lane by lane: p[d] = (u0, u1, u2, u3)'s byte d.
LOWBIT_INLINE void four_bytes(const __m256i (&u)[4], __m256i (&p)[4]) {
  const __m256i even = _mm256_set1_epi32(0x00ff00ff);
  const auto pair = [&](__m256i a, __m256i b) __attribute__((always_inline)) {  // a0 b0 a2 b2
    return _mm256_or_si256(_mm256_and_si256(a, even), _mm256_slli_epi32(_mm256_and_si256(b, even), 8));
  };
  const auto odd = [&](__m256i a, __m256i b) __attribute__((always_inline)) {  // a1 b1 a3 b3
    return _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi32(a, 8), even), _mm256_andnot_si256(even, b));
  };
  const __m256i e0 = pair(u[0], u[1]), e1 = pair(u[2], u[3]), o0 = odd(u[0], u[1]), o1 = odd(u[2], u[3]);
  p[0] = _mm256_blend_epi16(e0, _mm256_slli_epi32(e1, 16), 0xaa);
  p[1] = _mm256_blend_epi16(o0, _mm256_slli_epi32(o1, 16), 0xaa);
  p[2] = _mm256_blend_epi16(_mm256_srli_epi32(e0, 16), e1, 0xaa);
  p[3] = _mm256_blend_epi16(_mm256_srli_epi32(o0, 16), o1, 0xaa);
}

/// Eight columns from c on; zeros beyond the last k or column.
LOWBIT_INLINE __m256 load_panel(const SplitPanelArgs& a, int64_t k, int c) {
  if (k >= a.k || c >= a.cols) return _mm256_setzero_ps();
  const __m256 x = load_lanes(a.x + k * a.next + c, a.cols - c);
  return a.scale ? _mm256_mul_ps(x, _mm256_set1_ps(a.scale[k * a.scale_step])) : x;
}

LOWBIT_INLINE void measure_columns(const SplitPanelArgs& a, SplitLines& out, int c) {
  __m256i top = _mm256_setzero_si256();
  __m256 squares[kColumnLanes];
  for (__m256& s : squares) s = _mm256_setzero_ps();
  for (int64_t k = 0; k < a.k; k += kColumnLanes)
#pragma GCC unroll 4
    for (int j = 0; j < kColumnLanes; ++j) {
      const __m256 x = load_panel(a, k + j, c);
      top = _mm256_max_epi32(top, magnitude(x));
      squares[j] = _mm256_add_ps(squares[j], _mm256_mul_ps(x, x));
    }
  _mm256_store_si256(reinterpret_cast<__m256i*>(out.top + c), top);
  __m256 sum = _mm256_setzero_ps();
  for (const __m256& s : squares) sum = _mm256_add_ps(sum, s);
  _mm256_store_ps(out.squares + c, sum);
}

template <bool kFour>
void split_panel(const SplitPanelArgs& a, SplitLines& out) {
  const __m256i zero = _mm256_set1_epi32(digit_zero(a.digits)), flip = _mm256_set1_epi8(char(128));
  constexpr int64_t kSteps = kFour ? 2 : 32;  // of four numbers each, |q| < 2^27, 2^23
  for (int64_t begin = 0; begin < a.k; begin += 4 * kSteps)
    for (int c = 0; c < a.width; c += kLanes) {
      const __m256 v = _mm256_load_ps(out.v + c);
      __m256i sum = _mm256_setzero_si256();
      for (int64_t k = begin; k < std::min(a.k, begin + 4 * kSteps); k += 4) {
        __m256i u[4], p[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          const __m256i q = fixed(load_panel(a, k + j, c), v);
          sum = _mm256_add_epi32(sum, q);
          u[j] = _mm256_add_epi32(q, zero);
        }
        four_bytes(u, p);
        uint32_t* const to = a.words + k / 4 * a.width + c;
        const auto store = [&](int d, __m256i x) __attribute__((always_inline)) {
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + d * a.plane), x);
        };
        store(0, _mm256_xor_si256(p[0], flip));
        store(1, _mm256_xor_si256(p[1], flip));
        if (a.digits >= 3) store(2, _mm256_xor_si256(p[2], flip));
        if constexpr (kFour) store(3, p[3]);
      }
      add_sums(sum, out.sum + c);
    }
}

template <int kDigits, bool kOffset>
void digit_sums(const DigitSums& a) {
  constexpr int kPlane = kMaxRows * kPanel, kDoubles = 4;
  const __m256d b1 = _mm256_set1_pd(256), b2 = _mm256_set1_pd(65536), b3 = _mm256_set1_pd(16777216),
                row_unit = _mm256_set1_pd(a.row_unit), col_unit = _mm256_set1_pd(a.col_unit);
  for (int j = 0; j < a.cols; j += kDoubles) {
    const __m256d factor = _mm256_load_pd(a.col->factor + j),
                  add = _mm256_mul_pd(col_unit, _mm256_load_pd(a.col->add + j)),
                  offset = _mm256_load_pd(a.col->offset + j);
    const int left = a.cols - j;
    for (int r = 0; r < a.rows; ++r) {
      const auto load = [&](int d) __attribute__((always_inline)) {
        return _mm256_cvtepi32_pd(
            _mm_load_si128(reinterpret_cast<const __m128i*>(a.acc + d * kPlane + r * kPanel + j)));
      };
      // products with powers of two and sums of integers below 2^53: exact, so fma changes nothing
      __m256d sum = _mm256_fmadd_pd(load(1), b1, load(0));
      if constexpr (kDigits >= 3) sum = _mm256_fmadd_pd(load(2), b2, sum);
      if constexpr (kDigits == 4) sum = _mm256_fmadd_pd(load(3), b3, sum);
      sum = _mm256_add_pd(sum, _mm256_add_pd(_mm256_mul_pd(row_unit, _mm256_set1_pd(a.row->add[r])), add));
      __m256d y = _mm256_mul_pd(_mm256_mul_pd(_mm256_set1_pd(a.row->factor[r]), factor), sum);
      if constexpr (kOffset) y = _mm256_add_pd(y, _mm256_mul_pd(_mm256_set1_pd(a.row->offset[r]), offset));
      float* const to = a.y + r * a.ldy + j;
      if (left >= kDoubles)
        _mm_storeu_ps(to, _mm256_cvtpd_ps(y));
      else
        _mm_maskstore_ps(to, _mm256_castsi256_si128(lanes(left)), _mm256_cvtpd_ps(y));
    }
  }
}

/// Whether the vector loops read such a line; others go through the portable ones.
bool contiguous(const SplitLineArgs& a) { return a.step == 1 && (!a.scale || a.scale_step <= (1 << 24)); }

}  // namespace

void measure_line_avx2(const SplitLineArgs& a, SplitLines& out, int line) {
  if (!contiguous(a)) return digit_kernel(Isa::portable).measure_line(a, out, line);
  a.scale ? measure_line<true>(a, out, line) : measure_line<false>(a, out, line);
}

void measure_panel_avx2(const SplitPanelArgs& a, SplitLines& out) {
  if (a.col != 1) return digit_kernel(Isa::portable).measure_panel(a, out);
  for (int c = 0; c < a.cols; c += kLanes) measure_columns(a, out, c);
}

void split_line_avx2(const SplitLineArgs& a, SplitLines& out, int line) {
  if (!contiguous(a)) return digit_kernel(Isa::portable).line(a, out, line);
  static constexpr void (*table[2][2])(const SplitLineArgs&, SplitLines&, int) = {
      {split_line<false, false>, split_line<false, true>}, {split_line<true, false>, split_line<true, true>}};
  table[a.scale != nullptr][a.digits == kMaxDigits](a, out, line);
}

void split_panel_avx2(const SplitPanelArgs& a, SplitLines& out) {
  if (a.col != 1) return digit_kernel(Isa::portable).panel(a, out);
  a.digits == kMaxDigits ? split_panel<true>(a, out) : split_panel<false>(a, out);
}

void digit_sums_avx2(const DigitSums& a) {
  static constexpr void (*by_digits[3][2])(const DigitSums&) = {{digit_sums<2, false>, digit_sums<2, true>},
                                                                {digit_sums<3, false>, digit_sums<3, true>},
                                                                {digit_sums<4, false>, digit_sums<4, true>}};
  by_digits[a.digits - 2][a.offset](a);
}

}  // namespace lowbit::detail

#endif
