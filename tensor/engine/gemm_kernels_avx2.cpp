// AVX2 micro-kernels, tiles of 6 × 16 (a panel of 32 columns is two of them).
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <utility>

#include "tensor/engine/gemm_kernels.h"

namespace lowbit::detail {

namespace {

constexpr int kRows = 6, kCols = 16;

template <int... I>
using Seq = std::integer_sequence<int, I...>;

#define LOWBIT_INLINE static inline __attribute__((always_inline))

LOWBIT_INLINE __m256i lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

LOWBIT_INLINE void store_f32(const Tile<float>& t, int r, int c0, __m256 s) {
  if (c0 >= t.cols) return;
  const __m256i m = lanes(t.cols - c0);
  const __m256 alpha = _mm256_set1_ps(t.alpha);
  float* c = t.c + r * t.ldc + c0;
  __m256 y = _mm256_mul_ps(alpha, s);
  if (t.beta != 0)
    y = _mm256_fmadd_ps(alpha, s, _mm256_mul_ps(_mm256_set1_ps(t.beta), _mm256_maskload_ps(c, m)));
  if (t.bias) y = _mm256_add_ps(y, _mm256_maskload_ps(t.bias + c0, m));
  _mm256_maskstore_ps(c, m, y);
}

template <int... R>
LOWBIT_INLINE void tile_f32(const Tile<float>& t, int c0, Seq<R...>) {
  constexpr int rows = sizeof...(R);
  __m256 s0[rows], s1[rows];
  ((s0[R] = s1[R] = _mm256_setzero_ps()), ...);
  const float *a = t.a, *b = t.b + c0;
  for (int64_t k = t.k; k > 0; --k, a += rows, b += t.b_step) {
    const __m256 b0 = _mm256_loadu_ps(b), b1 = _mm256_loadu_ps(b + 8);
    const auto step = [&](int r, __m256& x, __m256& y) __attribute__((always_inline)) {
      const __m256 v = _mm256_broadcast_ss(a + r);
      x = _mm256_fmadd_ps(v, b0, x);
      y = _mm256_fmadd_ps(v, b1, y);
    };
    (step(R, s0[R], s1[R]), ...);
  }
  (store_f32(t, R, c0, s0[R]), ...);
  (store_f32(t, R, c0 + 8, s1[R]), ...);
}

/// vpmaddubsw saturates at 16 bits: only for `narrow` operands. Otherwise even and odd bytes are widened.
template <bool kNarrow, int... R>
LOWBIT_INLINE void tile_int(const IntTile& t, int c0, Seq<R...>) {
  constexpr int rows = sizeof...(R);
  __m256i s0[rows], s1[rows];
  ((s0[R] = s1[R] = _mm256_setzero_si256()), ...);
  const __m256i ones = _mm256_set1_epi16(1), low = _mm256_set1_epi16(0xff);
  for_ranges(
      t, [&](int64_t begin, int64_t end) __attribute__((always_inline)) {
        const auto* a = reinterpret_cast<const float*>(t.a) + begin * rows;
        const uint32_t* b = t.b + c0 + begin * t.b_step;
        for (int64_t k = end - begin; k > 0; --k, a += rows, b += t.b_step) {
          const __m256i b0 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b));
          const __m256i b1 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + 8));
          if constexpr (kNarrow) {
            const auto step = [&](int r, __m256i& x, __m256i& y) __attribute__((always_inline)) {
              const __m256i v = _mm256_castps_si256(_mm256_broadcast_ss(a + r));
              x = _mm256_add_epi32(x, _mm256_madd_epi16(_mm256_maddubs_epi16(v, b0), ones));
              y = _mm256_add_epi32(y, _mm256_madd_epi16(_mm256_maddubs_epi16(v, b1), ones));
            };
            (step(R, s0[R], s1[R]), ...);
          } else {
            const __m256i e0 = _mm256_srai_epi16(_mm256_slli_epi16(b0, 8), 8), o0 = _mm256_srai_epi16(b0, 8);
            const __m256i e1 = _mm256_srai_epi16(_mm256_slli_epi16(b1, 8), 8), o1 = _mm256_srai_epi16(b1, 8);
            const auto step = [&](int r, __m256i& x, __m256i& y) __attribute__((always_inline)) {
              const __m256i v = _mm256_castps_si256(_mm256_broadcast_ss(a + r));
              const __m256i ve = _mm256_and_si256(v, low), vo = _mm256_srli_epi16(v, 8);
              x = _mm256_add_epi32(x, _mm256_add_epi32(_mm256_madd_epi16(ve, e0), _mm256_madd_epi16(vo, o0)));
              y = _mm256_add_epi32(y, _mm256_add_epi32(_mm256_madd_epi16(ve, e1), _mm256_madd_epi16(vo, o1)));
            };
            (step(R, s0[R], s1[R]), ...);
          }
        }
      });
  alignas(32) int32_t acc[rows * kPanel];
  (_mm256_store_si256(reinterpret_cast<__m256i*>(acc + R * kPanel), s0[R]), ...);
  (_mm256_store_si256(reinterpret_cast<__m256i*>(acc + R * kPanel + 8), s1[R]), ...);
  int_epilogue(t, 0, rows, c0, std::min(kCols, t.cols - c0), acc);
}

template <int kR>
void run_f32(const Tile<float>& t) {
  for (int c0 = 0; c0 < t.cols; c0 += kCols) tile_f32(t, c0, std::make_integer_sequence<int, kR>{});
}
template <int kR>
void run_int(const IntTile& t) {
  for (int c0 = 0; c0 < t.cols; c0 += kCols) {
    if (t.narrow)
      tile_int<true>(t, c0, std::make_integer_sequence<int, kR>{});
    else
      tile_int<false>(t, c0, std::make_integer_sequence<int, kR>{});
  }
}

}  // namespace

void gemm_tile_f32_avx2(const Tile<float>& t) {
  static constexpr void (*table[kRows])(const Tile<float>&) = {run_f32<1>, run_f32<2>, run_f32<3>,
                                                               run_f32<4>, run_f32<5>, run_f32<6>};
  table[t.rows - 1](t);
}

void gemm_tile_int8_avx2(const IntTile& t) {
  static constexpr void (*table[kRows])(const IntTile&) = {run_int<1>, run_int<2>, run_int<3>,
                                                           run_int<4>, run_int<5>, run_int<6>};
  table[t.rows - 1](t);
}

}  // namespace lowbit::detail

#endif
