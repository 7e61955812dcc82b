// AVX-512 (VNNI) micro-kernels, tiles of 14 × 32, and the integer kernel of AMX, 32 × 32. Accumulators are
// indexed by constants of fold expressions only: gcc 12 keeps an array indexed by a loop variable in memory,
// at a third of the speed.
#if defined(__x86_64__)

#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12's own intrinsics headers
#include <immintrin.h>

#include <utility>

#include "tensor/engine/gemm_kernels.h"

namespace lowbit::detail {

namespace {

constexpr int kRows = 14;
constexpr int kAhead = 8;  // k steps between the prefetch of B and its use

template <int... I>
using Seq = std::integer_sequence<int, I...>;

#define LOWBIT_INLINE static inline __attribute__((always_inline))
#define LOWBIT_MEMBER __attribute__((always_inline))

LOWBIT_INLINE __mmask16 lanes(int n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : __mmask16((1u << n) - 1); }

/// The epilogue's constants, once per tile.
struct FloatStore {
  __m512 alpha, beta;
  __mmask16 m0, m1;
  float* c;
  int64_t ldc;
  const float* bias;
  bool add;
};

template <int kV>
LOWBIT_INLINE void store_row(const FloatStore& o, int r, __m512 x, __m512 y) {
  float* c = o.c + r * o.ldc;
  if (o.add) {
    x = _mm512_fmadd_ps(o.alpha, x, _mm512_mul_ps(o.beta, _mm512_maskz_loadu_ps(o.m0, c)));
    if constexpr (kV == 2)
      y = _mm512_fmadd_ps(o.alpha, y, _mm512_mul_ps(o.beta, _mm512_maskz_loadu_ps(o.m1, c + 16)));
  } else {
    x = _mm512_mul_ps(o.alpha, x);
    y = _mm512_mul_ps(o.alpha, y);
  }
  if (o.bias) {
    x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(o.m0, o.bias));
    if constexpr (kV == 2) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(o.m1, o.bias + 16));
  }
  _mm512_mask_storeu_ps(c, o.m0, x);
  if constexpr (kV == 2) _mm512_mask_storeu_ps(c + 16, o.m1, y);
}

template <_mm_hint kLevel = _MM_HINT_T0>
LOWBIT_INLINE void prefetch(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), kLevel);
}

/// Rows r, r + 1, r + 2 of a row-major A are p[r / 3] with 0, 1 or 2 strides: five pointers reach 14 rows.
template <bool kInPlace>
LOWBIT_INLINE const float* a_at(const float* const (&p)[5], int64_t stride, int r) {
  return kInPlace ? p[r / 3] + (r % 3) * stride : p[0] + r;
}

template <int kV, bool kInPlace, int... R>
LOWBIT_INLINE void tile_f32(const Tile<float>& t, Seq<R...>) {
  constexpr int rows = sizeof...(R);
  __m512 s0[rows], s1[rows];
  ((s0[R] = s1[R] = _mm512_setzero_ps()), ...);
  const int64_t stride = t.a_row, b_step = t.b_step;
  const float* p[5];
  for (int i = 0; i < 5; ++i) p[i] = kInPlace ? t.a + 3 * i * stride : t.a;
  const float* b = t.b;
  (prefetch(t.c + R * t.ldc), ...);
  if constexpr (kV == 2) (prefetch(t.c + R * t.ldc + t.cols - 1), ...);
  for (int64_t k = t.k; k > 0; --k) {
    const __m512 b0 = _mm512_loadu_ps(b);
    __m512 b1 = b0;
    if constexpr (kV == 2) b1 = _mm512_loadu_ps(b + 16);
    const auto step = [&](int r, __m512& x, __m512& y) __attribute__((always_inline)) {
      const __m512 v = _mm512_set1_ps(*a_at<kInPlace>(p, stride, r));
      x = _mm512_fmadd_ps(v, b0, x);
      if constexpr (kV == 2) y = _mm512_fmadd_ps(v, b1, y);
    };
    (step(R, s0[R], s1[R]), ...);
    prefetch(b + kAhead * 16 * kV);
    if constexpr (kV == 2) prefetch(b + kAhead * 32 + 16);
    b += b_step;
    if constexpr (kInPlace) {
      for (int i = 0; i < 5; ++i) ++p[i];
      asm volatile(""
                   : "+r"(p[0]), "+r"(p[1]), "+r"(p[2]), "+r"(p[3]),
                     "+r"(p[4]));  // five pointers, not fourteen
    } else {
      p[0] += rows;
    }
  }
  const FloatStore out{_mm512_set1_ps(t.alpha),
                       _mm512_set1_ps(t.beta),
                       lanes(t.cols),
                       lanes(t.cols - 16),
                       t.c,
                       t.ldc,
                       t.bias,
                       t.beta != 0};
  (store_row<kV>(out, R, s0[R], s1[R]), ...);
}

/// What an epilogue in 32 bits needs of the columns of a tile; constants stay in registers.
template <int kV, IntOut kOut>
struct IntStore {
  __mmask16 mask[kV];
  __m512i add[kV];
  __m512 scale[kV], bias[kV];
  __m128i shift;

  LOWBIT_MEMBER explicit IntStore(const IntTile& t) : shift(_mm_cvtsi32_si128(t.shift)) {
    for (int v = 0; v < kV; ++v) {
      mask[v] = lanes(t.cols - 16 * v);
      add[v] = _mm512_loadu_si512(t.col->correction + 16 * v);
      scale[v] = _mm512_loadu_ps(t.col->scale + 16 * v), bias[v] = _mm512_loadu_ps(t.col->bias + 16 * v);
    }
  }
  LOWBIT_MEMBER void row(const IntTile& t, int r, int v, __m512i s) const {
    auto* const c = static_cast<float*>(t.c) + r * t.ldc + 16 * v;
    const __m512i x = _mm512_add_epi32(
        _mm512_add_epi32(_mm512_sll_epi32(s, shift), _mm512_set1_epi32(t.row->correction[r])), add[v]);
    if constexpr (kOut == IntOut::s32) return _mm512_mask_storeu_epi32(c, mask[v], x);
    const __m512 factor = _mm512_mul_ps(_mm512_set1_ps(t.row->scale[r]), scale[v]);
    _mm512_mask_storeu_ps(c, mask[v], _mm512_fmadd_ps(_mm512_cvtepi32_ps(x), factor, bias[v]));
  }
};

LOWBIT_INLINE __m256 exact8(const IntTile& t, int r, int c, __m256i acc) {
  const RowInfo& ri = *t.row;
  const ColInfo& ci = *t.col;
  const __m512d s = _mm512_add_pd(_mm512_add_pd(_mm512_cvtepi32_pd(acc), _mm512_set1_pd(ri.sum[r])),
                                  _mm512_loadu_pd(ci.sum + c));
  __m512d y = _mm512_fmadd_pd(s, _mm512_set1_pd(ri.a[r]), _mm512_loadu_pd(ci.u + c));
  y = _mm512_fmadd_pd(y, _mm512_loadu_pd(ci.w + c), _mm512_set1_pd(ri.z[r]));
  y = _mm512_fmadd_pd(_mm512_loadu_pd(ci.e + c), _mm512_set1_pd(ri.q[r]), y);
  return _mm512_cvtpd_ps(_mm512_add_pd(y, _mm512_cvtps_pd(_mm256_loadu_ps(ci.bias + c))));
}

template <int kV>
LOWBIT_INLINE void store_exact(const IntTile& t, int r, const __m512i (&s)[kV]) {
  for (int v = 0; v < kV; ++v) {
    const __m256 lo = exact8(t, r, 16 * v, _mm512_castsi512_si256(s[v]));
    const __m256 hi = exact8(t, r, 16 * v + 8, _mm512_extracti64x4_epi64(s[v], 1));
    const __m512 y = _mm512_insertf32x8(_mm512_castps256_ps512(lo), hi, 1);
    _mm512_mask_storeu_ps(static_cast<float*>(t.c) + r * t.ldc + 16 * v, lanes(t.cols - 16 * v), y);
  }
}

template <int kV>
__attribute__((noinline)) void store_exact_tile(const IntTile& t, const __m512i* acc) {
  for (int r = 0; r < t.rows; ++r) {
    __m512i s[kV];
    for (int v = 0; v < kV; ++v) s[v] = acc[r * kV + v];
    store_exact<kV>(t, r, s);
  }
}

typedef float Unaligned __attribute__((aligned(1), may_alias));

/// Four k further, of all rows.
template <bool kInPlace, int kR>
LOWBIT_INLINE void next_words(const char* (&p)[5]) {
  if constexpr (kInPlace) {
    for (int i = 0; i < 5; ++i) p[i] += 4;
    asm volatile("" : "+r"(p[0]), "+r"(p[1]), "+r"(p[2]), "+r"(p[3]), "+r"(p[4]));  // five, not fourteen
  } else {
    p[0] += 4 * kR;
  }
}

template <int kV, bool kInPlace, int... R>
LOWBIT_INLINE void tile_int(const IntTile& t, Seq<R...>) {
  constexpr int rows = sizeof...(R);
  __m512i s0[rows], s1[rows];
  ((s0[R] = s1[R] = _mm512_setzero_si512()), ...);
  const auto* c = static_cast<const uint32_t*>(t.c);
  (prefetch<_MM_HINT_T1>(c + R * t.ldc), ...);
  if constexpr (kV == 2) (prefetch<_MM_HINT_T1>(c + R * t.ldc + t.cols - 1), ...);
  for_ranges(
      t, [&](int64_t begin, int64_t end) __attribute__((always_inline)) {
        const int64_t stride = t.a_row;
        const auto* const a = reinterpret_cast<const char*>(t.a) + begin * 4 * (kInPlace ? 1 : rows);
        const char* p[5];
        for (int i = 0; i < 5; ++i) p[i] = kInPlace ? a + 3 * i * stride : a;
        const uint32_t* b = t.b + begin * t.b_step;
        for (int64_t k = end - begin; k > 0; --k, b += t.b_step) {
          const __m512i b0 = _mm512_loadu_si512(b);
          __m512i b1 = b0;
          if constexpr (kV == 2) b1 = _mm512_loadu_si512(b + 16);
          const auto step = [&](int r, __m512i& x, __m512i& y) __attribute__((always_inline)) {
            // a float broadcast: straight from memory, not through a general register
            const char* const from = kInPlace ? p[r / 3] + (r % 3) * stride : p[0] + 4 * r;
            const __m512i v = _mm512_castps_si512(_mm512_set1_ps(*reinterpret_cast<const Unaligned*>(from)));
            x = _mm512_dpbusd_epi32(x, v, b0);
            if constexpr (kV == 2) y = _mm512_dpbusd_epi32(y, v, b1);
          };
          (step(R, s0[R], s1[R]), ...);
          next_words<kInPlace, rows>(p);
        }
      });
  if (t.out == IntOut::f64) {
    __m512i acc[rows * kV];
    ((acc[R * kV] = s0[R]), ...);
    if constexpr (kV == 2) ((acc[R * kV + 1] = s1[R]), ...);
    store_exact_tile<kV>(t, acc);
    return;
  }
  const auto store = [&](auto out) __attribute__((always_inline)) {
    const IntStore<kV, out> to(t);
    const auto row = [&](int r, __m512i x, __m512i y) __attribute__((always_inline)) {
      to.row(t, r, 0, x);
      if constexpr (kV == 2) to.row(t, r, 1, y);
    };
    (row(R, s0[R], s1[R]), ...);
  };
  if (t.out == IntOut::s32)
    store(std::integral_constant<IntOut, IntOut::s32>{});
  else
    store(std::integral_constant<IntOut, IntOut::f32>{});
}

template <int kV, bool kInPlace, int kR>
void run_f32(const Tile<float>& t) {
  tile_f32<kV, kInPlace>(t, std::make_integer_sequence<int, kR>{});
}
template <int kV, bool kInPlace, int kR>
void run_int(const IntTile& t) {
  tile_int<kV, kInPlace>(t, std::make_integer_sequence<int, kR>{});
}

template <int kV, int... R>
LOWBIT_INLINE void pick_f32(const Tile<float>& t, Seq<R...>) {
  static constexpr void (*packed[])(const Tile<float>&) = {run_f32<kV, false, R + 1>...};
  static constexpr void (*in_place[])(const Tile<float>&) = {run_f32<kV, true, R + 1>...};
  (t.a_row == 1 ? packed : in_place)[t.rows - 1](t);
}
template <int kV, int... R>
LOWBIT_INLINE void pick_int(const IntTile& t, Seq<R...>) {
  static constexpr void (*packed[])(const IntTile&) = {run_int<kV, false, R + 1>...};
  static constexpr void (*in_place[])(const IntTile&) = {run_int<kV, true, R + 1>...};
  (t.a_row == 0 ? packed : in_place)[t.rows - 1](t);
}

/// The expression of exact8(), eight columns at a time.
LOWBIT_INLINE void store_exact_rows(const IntTile& t, const int32_t* acc) {
  const RowInfo& ri = *t.row;
  const ColInfo& ci = *t.col;
  for (int c = 0; c < t.cols; c += 8) {
    const auto mask = __mmask8(lanes(t.cols - c));
    const __m512d sum = _mm512_loadu_pd(ci.sum + c), u = _mm512_loadu_pd(ci.u + c),
                  w = _mm512_loadu_pd(ci.w + c), e = _mm512_loadu_pd(ci.e + c),
                  bias = _mm512_cvtps_pd(_mm256_loadu_ps(ci.bias + c));
    auto* to = static_cast<float*>(t.c) + c;
    for (int r = 0; r < t.rows; ++r, to += t.ldc) {
      const __m256i from = _mm256_load_si256(reinterpret_cast<const __m256i*>(acc + r * kPanel + c));
      const __m512d s =
          _mm512_add_pd(_mm512_add_pd(_mm512_cvtepi32_pd(from), _mm512_set1_pd(ri.sum[r])), sum);
      __m512d y = _mm512_fmadd_pd(s, _mm512_set1_pd(ri.a[r]), u);
      y = _mm512_fmadd_pd(y, w, _mm512_set1_pd(ri.z[r]));
      y = _mm512_fmadd_pd(e, _mm512_set1_pd(ri.q[r]), y);
      _mm256_mask_storeu_ps(to, mask, _mm512_cvtpd_ps(_mm512_add_pd(y, bias)));
    }
  }
}

/// The epilogue of rows in memory; constants of columns stay in registers.
template <int kV, IntOut kOut>
LOWBIT_INLINE void store_int_rows(const IntTile& t, const int32_t* acc) {
  if constexpr (kOut == IntOut::f64) {
    store_exact_rows(t, acc);
  } else {
    const IntStore<kV, kOut> to(t);
    for (int r = 0; r < t.rows; ++r, acc += kPanel)
      for (int v = 0; v < kV; ++v) to.row(t, r, v, _mm512_load_si512(acc + 16 * v));
  }
}

void store_int_tile(const IntTile& t, const int32_t* acc) {
  static constexpr void (*table[2][3])(const IntTile&, const int32_t*) = {
      {store_int_rows<1, IntOut::s32>, store_int_rows<1, IntOut::f32>, store_int_rows<1, IntOut::f64>},
      {store_int_rows<2, IntOut::s32>, store_int_rows<2, IntOut::f32>, store_int_rows<2, IntOut::f64>}};
  table[t.cols > 16][int(t.out)](t, acc);
}

/// Four accumulators of 16 × 16; rows and columns that the tile lacks are computed from what lies in the
/// packed buffers and dropped.
template <int kRowTiles, int kColTiles>
void run_amx(const IntTile& t, int32_t* acc) {
  const int64_t a_row = t.a_row, b_row = t.b_step * 4;
  const auto* a = reinterpret_cast<const char*>(t.a);
  const char* const a1 = a + 16 * a_row;
  if (!t.plain)  // C is written by the epilogue, later
    for (int r = 0; r < t.rows; ++r) {
      const auto* const c = static_cast<const uint32_t*>(t.c) + r * t.ldc;
      prefetch<_MM_HINT_T1>(c);
      if constexpr (kColTiles == 2) prefetch<_MM_HINT_T1>(c + t.cols - 1);
    }
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for_ranges(
      t, [&](int64_t begin, int64_t end) __attribute__((always_inline)) {
        const char* b = reinterpret_cast<const char*>(t.b) + begin * b_row;
        for (int64_t k = begin; k < end; k += 16, b += 16 * b_row) {
          _tile_loadd(4, a + 4 * k, a_row);
          _tile_loadd(6, b, b_row);
          _tile_dpbusd(0, 4, 6);
          if constexpr (kColTiles == 2) {
            _tile_loadd(7, b + 64, b_row);
            _tile_dpbusd(1, 4, 7);
          }
          if constexpr (kRowTiles == 2) {
            _tile_loadd(5, a1 + 4 * k, a_row);
            _tile_dpbusd(2, 5, 6);
            if constexpr (kColTiles == 2) _tile_dpbusd(3, 5, 7);
          }
        }
      });
  _tile_stored(0, acc, kPanel * 4);
  if constexpr (kColTiles == 2) _tile_stored(1, acc + 16, kPanel * 4);
  if constexpr (kRowTiles == 2) _tile_stored(2, acc + 16 * kPanel, kPanel * 4);
  if constexpr (kRowTiles == 2 && kColTiles == 2) _tile_stored(3, acc + 16 * kPanel + 16, kPanel * 4);
}

/// The epilogue of a tile runs beside the multiplications of the next one.
struct Pending {
  alignas(64) int32_t acc[2][kMaxRows * kPanel];
  IntTile tile;
  bool any = false;
  int next = 0;  // accumulators that the next tile may use
};
constinit thread_local Pending pending{};

void multiply(const IntTile& t, int32_t* acc) {
  if (t.cols <= 16)
    t.rows <= 16 ? run_amx<1, 1>(t, acc) : run_amx<2, 1>(t, acc);
  else
    t.rows <= 16 ? run_amx<1, 2>(t, acc) : run_amx<2, 2>(t, acc);
}

}  // namespace

void amx_begin() {
  struct alignas(64) Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
  static constexpr Config all_whole;  // in memory: the intrinsic tells gcc of its first bytes only
  _tile_loadconfig(&all_whole);
}
void amx_flush() {
  if (pending.any) store_int_tile(pending.tile, pending.acc[1 - pending.next]);
  pending.any = false;
}
void amx_end() {
  amx_flush();
  _tile_release();
}

void gemm_tile_int8_amx(const IntTile& t) {
  if (t.plain) return multiply(t, static_cast<int32_t*>(t.c));
  multiply(t, pending.acc[pending.next]);
  amx_flush();
  pending.tile = t, pending.any = true, pending.next = 1 - pending.next;
}

void gemm_tile_f32_avx512(const Tile<float>& t) {
  if (t.cols <= 16)
    pick_f32<1>(t, std::make_integer_sequence<int, kRows>{});
  else
    pick_f32<2>(t, std::make_integer_sequence<int, kRows>{});
}

void gemm_tile_int8_avx512(const IntTile& t) {
  if (t.cols <= 16)
    pick_int<1>(t, std::make_integer_sequence<int, kRows>{});
  else
    pick_int<2>(t, std::make_integer_sequence<int, kRows>{});
}

}  // namespace lowbit::detail

#endif
