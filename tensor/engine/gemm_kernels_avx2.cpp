// AVX2 micro-kernels: 6 × 16 floats, 3 × 16 integer sums (a panel of 32 columns is two of them).
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <utility>

#include "tensor/engine/gemm_kernels.h"

namespace lowbit::detail {

namespace {

constexpr int kRows = 6, kCols = 16;
constexpr int kAhead = 8;  // k steps between the prefetch of B and its use

template <int... I>
using Seq = std::integer_sequence<int, I...>;

#define LOWBIT_INLINE static inline __attribute__((always_inline))

LOWBIT_INLINE __m256i lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/// The first n of eight lanes. Masked stores are slow on some processors.
LOWBIT_INLINE void store_lanes(float* to, int n, __m256 x) {
  if (n >= 8)
    _mm256_storeu_ps(to, x);
  else
    _mm256_maskstore_ps(to, lanes(n), x);
}

/// Where the results of a tile go. A copy: what is stored might change the tile itself, for all that the
/// compiler knows, and everything would be read again for every eight results.
struct FloatResults {
  float* const c;
  const int64_t ldc;
  const int cols;
  const float alpha, beta;
  const float* const bias;
  explicit FloatResults(const Tile<float>& t)
      : c(t.c), ldc(t.ldc), cols(t.cols), alpha(t.alpha), beta(t.beta), bias(t.bias) {}
};

LOWBIT_INLINE void store_f32(const FloatResults& to, int r, int c0, __m256 s) {
  if (c0 >= to.cols) return;
  const int n = to.cols - c0;
  const auto load = [n](const float* p) __attribute__((always_inline)) {
    return n >= 8 ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, lanes(n));
  };
  const __m256 alpha = _mm256_set1_ps(to.alpha);
  float* const c = to.c + r * to.ldc + c0;
  __m256 y = _mm256_mul_ps(alpha, s);
  if (to.beta != 0) y = _mm256_fmadd_ps(alpha, s, _mm256_mul_ps(_mm256_set1_ps(to.beta), load(c)));
  if (to.bias) y = _mm256_add_ps(y, load(to.bias + c0));
  store_lanes(c, n, y);
}

/// Packed rows of A lie side by side; in place they are read from two pointers, three rows apart.
template <bool kInPlace, int... R>
LOWBIT_INLINE void tile_f32(const Tile<float>& t, int c0, Seq<R...>) {
  constexpr int rows = sizeof...(R);
  __m256 s0[rows], s1[rows];
  ((s0[R] = s1[R] = _mm256_setzero_ps()), ...);
  const int64_t b_step = t.b_step, stride = t.a_row, a_step = kInPlace ? 1 : rows;
  const float *a = t.a, *a3 = t.a + 3 * stride, *b = t.b + c0;
  (_mm_prefetch(reinterpret_cast<const char*>(t.c + R * t.ldc + c0), _MM_HINT_T0), ...);
  const auto one_k = [&]() __attribute__((always_inline)) {
    const __m256 b0 = _mm256_loadu_ps(b), b1 = _mm256_loadu_ps(b + 8);
    const auto step = [&](int r, __m256& x, __m256& y) __attribute__((always_inline)) {
      const float* const at = !kInPlace ? a + r : (r < 3 ? a + r * stride : a3 + (r - 3) * stride);
      const __m256 v = _mm256_broadcast_ss(at);
      x = _mm256_fmadd_ps(v, b0, x);
      y = _mm256_fmadd_ps(v, b1, y);
    };
    (step(R, s0[R], s1[R]), ...);
    a += a_step, b += b_step;
    if constexpr (kInPlace) a3 += a_step;
  };
  // Four at a time: with fewer instructions around them the multiplications keep both units busy.
  const float* const whole = a + t.k / 4 * 4 * a_step;
  while (a != whole) {
    _mm_prefetch(reinterpret_cast<const char*>(b + kAhead * b_step), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(b + (kAhead + 1) * b_step), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(b + (kAhead + 2) * b_step), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(b + (kAhead + 3) * b_step), _MM_HINT_T0);
    one_k(), one_k(), one_k(), one_k();
    if constexpr (kInPlace) asm volatile("" : "+r"(a), "+r"(a3));  // two pointers, not six
  }
  for (int64_t k = t.k % 4; k > 0; --k) one_k();
  const FloatResults to(t);
  if (to.cols - c0 >= kCols && to.beta == 0 && !to.bias) {  // nearly always
    const __m256 alpha = _mm256_set1_ps(to.alpha);
    const auto row = [&](int r) __attribute__((always_inline)) { return to.c + r * to.ldc + c0; };
    ((_mm256_storeu_ps(row(R), _mm256_mul_ps(alpha, s0[R])),
      _mm256_storeu_ps(row(R) + 8, _mm256_mul_ps(alpha, s1[R]))),
     ...);
    return;
  }
  ((store_f32(to, R, c0, s0[R]), store_f32(to, R, c0 + 8, s1[R])), ...);
}

LOWBIT_INLINE __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

/// Eight results of row r from column c on: the epilogue of int_epilogue().
LOWBIT_INLINE __m256 exact(const IntTile& t, int r, int c, __m256i acc) {
  const RowInfo& ri = *t.row;
  const ColInfo& ci = *t.col;
  const auto half = [&](int i, __m128i x) __attribute__((always_inline)) {
    const __m256d s = _mm256_add_pd(_mm256_add_pd(_mm256_cvtepi32_pd(x), _mm256_set1_pd(ri.sum[r])),
                                    _mm256_loadu_pd(ci.sum + i));
    __m256d y = _mm256_fmadd_pd(s, _mm256_set1_pd(ri.a[r]), _mm256_loadu_pd(ci.u + i));
    y = _mm256_fmadd_pd(y, _mm256_loadu_pd(ci.w + i), _mm256_set1_pd(ri.z[r]));
    y = _mm256_fmadd_pd(_mm256_loadu_pd(ci.e + i), _mm256_set1_pd(ri.q[r]), y);
    return _mm256_cvtpd_ps(_mm256_add_pd(y, _mm256_cvtps_pd(_mm_loadu_ps(ci.bias + i))));
  };
  return _mm256_set_m128(half(c + 4, _mm256_extracti128_si256(acc, 1)), half(c, _mm256_castsi256_si128(acc)));
}

/// What becomes of the sums: the epilogue of int_epilogue(), or nothing.
enum class Store : uint8_t { plain, s32, f32, f64 };

/// Where the results of a tile go. A copy: what is stored might change the tile itself, for all that the
/// compiler knows, and everything would be read again for every eight results.
struct IntResults {
  float* const c;
  const int64_t ldc;
  const int cols;
  const __m128i shift;
  const int32_t *const row_correction, *const col_correction;
  const float *const row_scale, *const col_scale, *const bias;

  explicit IntResults(const IntTile& t)
      : c(static_cast<float*>(t.c)),
        ldc(t.ldc),
        cols(t.cols),
        shift(_mm_cvtsi32_si128(t.shift)),
        row_correction(t.row ? t.row->correction : nullptr),
        col_correction(t.col ? t.col->correction : nullptr),
        row_scale(t.row ? t.row->scale : nullptr),
        col_scale(t.col ? t.col->scale : nullptr),
        bias(t.col ? t.col->bias : nullptr) {}
};

/// What eight columns from c on add to their sums, read once for all rows.
template <Store kStore>
struct IntColumns {
  __m256i correction;
  __m256 scale, bias;

  __attribute__((always_inline)) IntColumns(const IntResults& to, int c) {
    if constexpr (kStore == Store::s32 || kStore == Store::f32) correction = load(to.col_correction + c);
    if constexpr (kStore == Store::f32)
      scale = _mm256_loadu_ps(to.col_scale + c), bias = _mm256_loadu_ps(to.bias + c);
  }
};

/// Eight results of row r.
template <Store kStore>
LOWBIT_INLINE __m256 finished(const IntTile& t, const IntResults& to, const IntColumns<kStore>& col, int r,
                              int c, __m256i s) {
  if constexpr (kStore == Store::plain) return _mm256_castsi256_ps(s);
  if constexpr (kStore == Store::f64) return exact(t, r, c, s);
  const __m256i x = _mm256_add_epi32(
      _mm256_add_epi32(_mm256_sll_epi32(s, to.shift), _mm256_set1_epi32(to.row_correction[r])),
      col.correction);
  if constexpr (kStore == Store::s32) return _mm256_castsi256_ps(x);
  const __m256 factor = _mm256_mul_ps(_mm256_set1_ps(to.row_scale[r]), col.scale);
  return _mm256_fmadd_ps(_mm256_cvtepi32_ps(x), factor, col.bias);
}

/// The results of rows r0, … and of 16 columns.
template <Store kStore, int... R>
LOWBIT_INLINE void store_int(const IntTile& t, int r0, int c0, const __m256i (&s0)[sizeof...(R)],
                             const __m256i (&s1)[sizeof...(R)], Seq<R...>) {
  const IntResults to(t);
  const IntColumns<kStore> x0(to, c0), x1(to, c0 + 8);
  float* const at = to.c + r0 * to.ldc + c0;
  const auto row = [&](int r) __attribute__((always_inline)) { return at + r * to.ldc; };
  const int left = to.cols - c0;
  if (kStore == Store::plain || left >= kCols) {  // nearly always
    ((_mm256_storeu_ps(row(R), finished<kStore>(t, to, x0, r0 + R, c0, s0[R])),
      _mm256_storeu_ps(row(R) + 8, finished<kStore>(t, to, x1, r0 + R, c0 + 8, s1[R]))),
     ...);
    return;
  }
  (store_lanes(row(R), left, finished<kStore>(t, to, x0, r0 + R, c0, s0[R])), ...);
  if (left > 8) (store_lanes(row(R) + 8, left - 8, finished<kStore>(t, to, x1, r0 + R, c0 + 8, s1[R])), ...);
}

typedef float Unaligned __attribute__((aligned(1), may_alias));

LOWBIT_INLINE __m256i broadcast(const char* p) {  // straight from memory, not through a general register
  return _mm256_castps_si256(_mm256_broadcast_ss(reinterpret_cast<const Unaligned*>(p)));
}

/// x += y. From the intrinsic gcc 12 makes an addition and a copy of every sum in the inner loop.
LOWBIT_INLINE void add16(__m256i& x, __m256i y) { asm("vpaddw %1, %0, %0" : "+x"(x) : "x"(y)); }

/// How products of bytes are added up. vpmaddubsw adds two of them in 16 bits, saturating.
enum class Sums : uint8_t {
  wide,    ///< operands too large for that: even and odd bytes are widened first
  narrow,  ///< `words16` words are added in 16 bits before they are widened
  once,    ///< all words of the product are
};

/// Rows r0, … of a tile, 16 columns.
template <Sums kSums, Store kStore, int... R>
LOWBIT_INLINE void tile_int(const IntTile& t, int r0, int c0, Seq<R...> all) {
  constexpr int rows = sizeof...(R);
  constexpr bool kWide = kSums == Sums::wide, kOnce = kSums == Sums::once;
  __m256i s0[rows], s1[rows];
  if constexpr (!kOnce) ((s0[R] = s1[R] = _mm256_setzero_si256()), ...);
  const __m256i ones = _mm256_set1_epi16(1), low = _mm256_set1_epi16(0xff);
  const int64_t row = t.a_row ? t.a_row : 4, next = t.a_row ? 4 : 4 * t.rows, b_step = t.b_step;
  if constexpr (kStore != Store::plain)
    (_mm_prefetch(static_cast<const char*>(t.c) + 4 * ((r0 + R) * t.ldc + c0), _MM_HINT_T0), ...);
  const auto range = [&](int64_t begin, int64_t end) __attribute__((always_inline)) {
    const char* a = reinterpret_cast<const char*>(t.a) + r0 * row + begin * next;
    const uint32_t* b = t.b + c0 + begin * b_step;
    for (int64_t left = end - begin; kOnce || left > 0;) {
      const int64_t n = kSums == Sums::narrow ? std::min<int64_t>(left, t.words16) : left;
      left -= n;
      __m256i x0[rows], x1[rows];  // sums of 16 bits
      ((x0[R] = x1[R] = _mm256_setzero_si256()), ...);
      const char* const stop = a + n * next;
      do {
        const __m256i b0 = load(b), b1 = load(b + 8);
        if constexpr (!kWide) {
          const auto step = [&](int r, __m256i& x, __m256i& y) __attribute__((always_inline)) {
            const __m256i v = broadcast(a + r * row);
            add16(x, _mm256_maddubs_epi16(v, b0));
            add16(y, _mm256_maddubs_epi16(v, b1));
          };
          (step(R, x0[R], x1[R]), ...);
        } else {
          const __m256i e0 = _mm256_srai_epi16(_mm256_slli_epi16(b0, 8), 8);
          const __m256i e1 = _mm256_srai_epi16(_mm256_slli_epi16(b1, 8), 8);
          const __m256i o0 = _mm256_srai_epi16(b0, 8), o1 = _mm256_srai_epi16(b1, 8);
          const auto step = [&](int r, __m256i& x, __m256i& y) __attribute__((always_inline)) {
            const __m256i v = broadcast(a + r * row);
            const __m256i ve = _mm256_and_si256(v, low), vo = _mm256_srli_epi16(v, 8);
            x = _mm256_add_epi32(x, _mm256_add_epi32(_mm256_madd_epi16(ve, e0), _mm256_madd_epi16(vo, o0)));
            y = _mm256_add_epi32(y, _mm256_add_epi32(_mm256_madd_epi16(ve, e1), _mm256_madd_epi16(vo, o1)));
          };
          (step(R, s0[R], s1[R]), ...);
        }
        a += next, b += b_step;
        asm volatile("" : "+r"(a), "+r"(b));  // two pointers, not one for every row
      } while (a != stop);
      if constexpr (kOnce) {
        ((s0[R] = _mm256_madd_epi16(x0[R], ones), s1[R] = _mm256_madd_epi16(x1[R], ones)), ...);
        return;
      } else if constexpr (!kWide) {
        ((s0[R] = _mm256_add_epi32(s0[R], _mm256_madd_epi16(x0[R], ones)),
          s1[R] = _mm256_add_epi32(s1[R], _mm256_madd_epi16(x1[R], ones))),
         ...);
      }
    }
  };
  if constexpr (kOnce)
    range(0, t.words);
  else
    for_ranges(t, range);
  store_int<kStore>(t, r0, c0, s0, s1, all);
}

/// Three rows at a time: sums of 16 and of 32 bits both stay in registers. Up to six, whose sums of 32 bits
/// do not, where these are made once or rarely.
template <Sums kSums, Store kStore>
void run_int(const IntTile& t) {
  constexpr int kRarely = 32;  // words
  const bool many = kSums == Sums::once || (kSums == Sums::narrow && t.words16 >= kRarely);
  const auto tile = [&](int r, int c0, auto rows) __attribute__((always_inline)) {
    tile_int<kSums, kStore>(t, r, c0, std::make_integer_sequence<int, rows>{});
  };
  for (int c0 = 0; c0 < t.cols; c0 += kCols) {
    int r = 0;
    if constexpr (kSums != Sums::wide) {
      for (; many && r + 6 <= t.rows; r += 6) tile(r, c0, std::integral_constant<int, 6>{});
    }
    if constexpr (kSums == Sums::once) {
      if (t.rows - r == 5) r += 5, tile(r - 5, c0, std::integral_constant<int, 5>{});
      if (t.rows - r == 4) r += 4, tile(r - 4, c0, std::integral_constant<int, 4>{});
    }
    for (; r + 3 <= t.rows; r += 3) tile(r, c0, std::integral_constant<int, 3>{});
    if (t.rows - r == 2) tile(r, c0, std::integral_constant<int, 2>{});
    if (t.rows - r == 1) tile(r, c0, std::integral_constant<int, 1>{});
  }
}

template <bool kInPlace, int kR>
void run_f32(const Tile<float>& t) {
  for (int c0 = 0; c0 < t.cols; c0 += kCols) tile_f32<kInPlace>(t, c0, std::make_integer_sequence<int, kR>{});
}

template <int... R>
void pick_f32(const Tile<float>& t, Seq<R...>) {
  static constexpr void (*packed[])(const Tile<float>&) = {run_f32<false, R + 1>...};
  static constexpr void (*in_place[])(const Tile<float>&) = {run_f32<true, R + 1>...};
  (t.a_row == 1 ? packed : in_place)[t.rows - 1](t);
}
}  // namespace

void gemm_tile_f32_avx2(const Tile<float>& t) { pick_f32(t, std::make_integer_sequence<int, kRows>{}); }

void gemm_tile_int8_avx2(const IntTile& t) {
  const auto pick = [&](auto sums) {
    static constexpr void (*table[])(const IntTile&) = {
        run_int<sums.value, Store::plain>, run_int<sums.value, Store::s32>, run_int<sums.value, Store::f32>,
        run_int<sums.value, Store::f64>};
    table[t.plain ? 0 : 1 + int(t.out)](t);
  };
  if (t.words16 == 0)
    pick(std::integral_constant<Sums, Sums::wide>{});
  else if (t.ranges || t.words == 0 || t.words16 < t.words)
    pick(std::integral_constant<Sums, Sums::narrow>{});
  else
    pick(std::integral_constant<Sums, Sums::once>{});
}

}  // namespace lowbit::detail

#endif
