#include "tensor/engine/gemm_pack.h"

#include <array>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace lowbit::detail {

void* thread_scratch(Scratch slot, size_t bytes) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  struct Buffer {
    std::unique_ptr<void, Free> data;
    size_t bytes = 0;
  };
  thread_local std::array<Buffer, 4> buffers;
  Buffer& b = buffers[size_t(slot)];
  if (bytes > b.bytes) {
    const size_t size = round_up(bytes + bytes / 4, 4096);
    b.data.reset();
    b.data.reset(std::aligned_alloc(64, size));
    if (!b.data) throw std::bad_alloc();
    b.bytes = size;
  }
  return b.data.get();
}

namespace {

uint32_t load_word(const uint8_t* p) {
  uint32_t w;
  std::memcpy(&w, p, 4);
  return w;
}

/// Four bytes at once: no borrow crosses a byte.
uint32_t subtract_bytes(uint32_t w, uint8_t sub) {
  constexpr uint32_t high = 0x80808080u;
  const uint32_t s = sub * 0x01010101u;
  return ((w | high) - (s & ~high)) ^ ((w ^ ~s) & high);
}

#if defined(__AVX2__)

/// 8 rows × 8 words, transposed: column c goes to dst + c · ld, in increasing c (an overhang is overwritten).
inline void transpose_8x8(const uint8_t* const (&row)[8], int64_t byte, __m256i sub, uint32_t* dst, int ld) {
  __m256 v[8], t[8];
  for (int i = 0; i < 8; ++i)
    v[i] = _mm256_castsi256_ps(
        _mm256_sub_epi8(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row[i] + byte)), sub));
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(v[2 * i], v[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(v[2 * i], v[2 * i + 1]);
  }
  for (int h = 0; h < 2; ++h) {
    v[4 * h] = _mm256_shuffle_ps(t[4 * h], t[4 * h + 2], 0x44);
    v[4 * h + 1] = _mm256_shuffle_ps(t[4 * h], t[4 * h + 2], 0xee);
    v[4 * h + 2] = _mm256_shuffle_ps(t[4 * h + 1], t[4 * h + 3], 0x44);
    v[4 * h + 3] = _mm256_shuffle_ps(t[4 * h + 1], t[4 * h + 3], 0xee);
  }
  auto* out = reinterpret_cast<float*>(dst);
  for (int i = 0; i < 4; ++i) _mm256_storeu_ps(out + i * ld, _mm256_permute2f128_ps(v[i], v[i + 4], 0x20));
  for (int i = 0; i < 4; ++i)
    _mm256_storeu_ps(out + (i + 4) * ld, _mm256_permute2f128_ps(v[i], v[i + 4], 0x31));
}

/// A group of 8 rows may store past its column; groups run from the last to the first, so the first words of
/// the next column are written after the overhang.
int64_t transpose_blocks(const uint8_t* src, int64_t row_bytes, int rows, int64_t words, uint8_t sub,
                         uint32_t* dst, int ld) {
  const __m256i s = _mm256_set1_epi8(char(sub));
  const int64_t whole = words / 8 * 8;
  for (int r0 = (rows - 1) / 8 * 8; r0 >= 0; r0 -= 8) {
    const uint8_t* row[8];
    for (int i = 0; i < 8; ++i) row[i] = src + std::min(r0 + i, rows - 1) * row_bytes;
    for (int64_t c = 0; c < whole; c += 8) transpose_8x8(row, c * 4, s, dst + c * ld + r0, ld);
  }
  return whole;
}

constexpr int64_t kAhead = 12;  ///< lines that are fetched early, since they are far apart

/// Columns of the source are contiguous: rows of up to 8 floats are copied.
void copy_floats(const float* src, int64_t col, int rows, int64_t cols, float* dst, int ld) {
  const __m256i tail =
      _mm256_cmpgt_epi32(_mm256_set1_epi32(rows % 8), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  const int whole = rows / 8 * 8;
  for (int64_t k = 0; k < cols; ++k, src += col, dst += ld) {
    _mm_prefetch(reinterpret_cast<const char*>(src + kAhead * col), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(src + kAhead * col + rows - 1), _MM_HINT_T0);
    for (int r = 0; r < whole; r += 8) _mm256_storeu_ps(dst + r, _mm256_loadu_ps(src + r));
    if (whole < rows) _mm256_storeu_ps(dst + whole, _mm256_maskload_ps(src + whole, tail));
  }
}

/// Up to 16 bytes of a row that holds `n` more.
inline __m128i load_bytes(const uint8_t* p, int n) {
  if (n >= 16) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  if (n >= 8) {  // two halves; the second ends with the row and is shifted down
    const __m128i lo = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    const __m128i hi = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + n - 8));
    return _mm_unpacklo_epi64(lo, _mm_srl_epi64(hi, _mm_cvtsi32_si128(8 * (16 - n))));
  }
  alignas(16) uint8_t buffer[16] = {};
  for (int i = 0; i < n; ++i) buffer[i] = p[i];
  return _mm_load_si128(reinterpret_cast<const __m128i*>(buffer));
}

/// 32 rows at once.
int64_t interleave_panel(const uint8_t* src, int64_t col, int64_t words, uint8_t sub, uint32_t* dst, int ld) {
  const __m256i s = _mm256_set1_epi8(char(sub));
  for (int64_t w = 0; w < words; ++w, src += 4 * col, dst += ld) {
    __m256i v[4];
    for (int i = 0; i < 4; ++i)
      v[i] = _mm256_sub_epi8(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(src + i * col)), s);
    const __m256i a = _mm256_unpacklo_epi8(v[0], v[1]), b = _mm256_unpackhi_epi8(v[0], v[1]);
    const __m256i c = _mm256_unpacklo_epi8(v[2], v[3]), d = _mm256_unpackhi_epi8(v[2], v[3]);
    const __m256i out[4] = {_mm256_unpacklo_epi16(a, c), _mm256_unpackhi_epi16(a, c),
                            _mm256_unpacklo_epi16(b, d), _mm256_unpackhi_epi16(b, d)};
    auto* const to = reinterpret_cast<__m256i*>(dst);
    for (int i = 0; i < 2; ++i) {
      _mm256_storeu_si256(to + i, _mm256_permute2x128_si256(out[2 * i], out[2 * i + 1], 0x20));
      _mm256_storeu_si256(to + 2 + i, _mm256_permute2x128_si256(out[2 * i], out[2 * i + 1], 0x31));
    }
  }
  return words;
}

/// Rows of the operand are contiguous bytes: four k are interleaved, 16 rows at a time, last group first.
int64_t interleave_codes(const uint8_t* src, int64_t col, int rows, int64_t k, uint8_t sub, uint32_t* dst,
                         int ld) {
  if (rows == 32) return interleave_panel(src, col, k / 4, sub, dst, ld);
  const __m128i s = _mm_set1_epi8(char(sub));
  const int64_t words = k / 4;
  for (int64_t w = 0; w < words; ++w)
    for (int r0 = (rows - 1) / 16 * 16; r0 >= 0; r0 -= 16) {
      __m128i v[4];
      for (int i = 0; i < 4; ++i) v[i] = _mm_sub_epi8(load_bytes(src + (4 * w + i) * col + r0, rows - r0), s);
      const __m128i a = _mm_unpacklo_epi8(v[0], v[1]), b = _mm_unpackhi_epi8(v[0], v[1]);
      const __m128i c = _mm_unpacklo_epi8(v[2], v[3]), d = _mm_unpackhi_epi8(v[2], v[3]);
      const __m128i out[4] = {_mm_unpacklo_epi16(a, c), _mm_unpackhi_epi16(a, c), _mm_unpacklo_epi16(b, d),
                              _mm_unpackhi_epi16(b, d)};
      for (int i = 0; i < 4 && r0 + 4 * i < rows; ++i)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + w * ld + r0 + 4 * i), out[i]);
    }
  return words;
}

/// to[i] = src[i] − sub for i < k, then zeros up to a multiple of 16. Returns how many bytes were written.
int64_t copy_bytes(const uint8_t* src, int64_t k, uint8_t sub, uint8_t* to) {
  static constexpr int8_t kDown[32] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                       -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
  const __m128i s = _mm_set1_epi8(char(sub));
  if (k < 16) return 0;
  int64_t i = 0;
  for (; i + 16 <= k; i += 16)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm_sub_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src + i)), s));
  if (i == k) return k;
  // the last 16 bytes, less those that were copied
  const __m128i down = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kDown + i + 16 - k));
  const __m128i rest = _mm_sub_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src + k - 16)), s);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm_shuffle_epi8(rest, down));
  return i + 16;
}

#else

int64_t copy_bytes(const uint8_t*, int64_t, uint8_t, uint8_t*) { return 0; }
int64_t transpose_blocks(const uint8_t*, int64_t, int, int64_t, uint8_t, uint32_t*, int) { return 0; }
void copy_floats(const float* src, int64_t col, int rows, int64_t cols, float* dst, int ld) {
  for (int64_t k = 0; k < cols; ++k) std::memcpy(dst + k * ld, src + k * col, size_t(rows) * 4);
}
int64_t interleave_codes(const uint8_t*, int64_t, int, int64_t, uint8_t, uint32_t*, int) { return 0; }

#endif

/// to[c · ld + r] = from[r · cols + c]: 8 × 8 words at a time.
void transpose_words(const uint32_t* from, int64_t rows, int64_t cols, uint32_t* to, int64_t ld) {
  int64_t whole_rows = 0;
#if defined(__AVX2__)
  whole_rows = rows / 8 * 8;
  const int64_t whole_cols = cols / 8 * 8;
  for (int64_t c = 0; c < whole_cols; c += 8)
    for (int64_t r = 0; r < whole_rows; r += 8) {
      const uint8_t* row[8];
      for (int i = 0; i < 8; ++i) row[i] = reinterpret_cast<const uint8_t*>(from + (r + i) * cols);
      transpose_8x8(row, c * 4, _mm256_setzero_si256(), to + c * ld + r, int(ld));
    }
  for (int64_t c = whole_cols; c < cols; ++c)
    for (int64_t r = 0; r < whole_rows; ++r) to[c * ld + r] = from[r * cols + c];
#endif
  for (int64_t r = whole_rows; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) to[c * ld + r] = from[r * cols + c];
}

/// Values of the codes of one row, `n` of them.
template <class Code>
void row_values(const CodeTile& t, const Code* src, int64_t r, int64_t n, float* dst) {
  const float* const scale = t.scale + r * t.scale_row;
  const auto run = [&](auto unit_step, auto one_scale) {
    const int64_t step = unit_step ? 1 : t.col;
    const float first = scale[0];
    for (int64_t i = 0; i < n; ++i)
      dst[i] = (one_scale ? first : scale[i * t.scale_col]) * (float(src[i * step]) + t.shift);
  };
  if (t.col == 1 && t.scale_col == 0)
    run(std::true_type{}, std::true_type{});
  else
    run(std::false_type{}, std::false_type{});
  if (!t.offset) return;
  const float* const offset = t.offset + r * t.offset_row;
  for (int64_t i = 0; i < n; ++i) dst[i] += offset[i * t.offset_col];
}

#if defined(__AVX2__)

template <class Code>
inline __m256 eight_codes(const Code* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  if constexpr (std::is_signed_v<Code>)
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
  else
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
}

/// The eight codes at p, of which `left` are there.
template <class Code>
inline __m256 codes_left(const Code* p, int left) {
  Code rest[8] = {};
  std::copy_n(p, std::min(8, left), rest);
  return eight_codes(rest);
}

/// Codes of one k are contiguous: eight at a time, straight to their place. Scales and offsets run along k
/// (kScaleOfK, kOffsetOfK) or along the rows.
template <class Code, bool kScaleOfK, bool kOffset, bool kOffsetOfK>
void column_values(const CodeTile& t, const Code* src, int rows, int64_t cols, float* dst, int ld) {
  constexpr int kMost = 64;
  LOWBIT_ASSERT(rows <= kMost);
  float scales[kMost] = {}, offsets[kMost] = {};
  for (int r = 0; r < rows && !kScaleOfK; ++r) scales[r] = t.scale[r * t.scale_row];
  for (int r = 0; r < rows && kOffset && !kOffsetOfK; ++r) offsets[r] = t.offset[r * t.offset_row];
  const __m256 shift = _mm256_set1_ps(t.shift);
  const auto one_k = [&](int64_t k, auto codes) {
    __m256 scale, offset;
    if constexpr (kScaleOfK) scale = _mm256_set1_ps(t.scale[k * t.scale_col]);
    if constexpr (kOffsetOfK) offset = _mm256_set1_ps(t.offset[k * t.offset_col]);
    for (int r = 0; r < rows; r += 8) {
      if constexpr (!kScaleOfK) scale = _mm256_loadu_ps(scales + r);
      __m256 v = _mm256_mul_ps(scale, _mm256_add_ps(codes(src + k * t.col + r, r), shift));
      if constexpr (kOffset && !kOffsetOfK) offset = _mm256_loadu_ps(offsets + r);
      if constexpr (kOffset) v = _mm256_add_ps(v, offset);
      _mm256_storeu_ps(dst + k * ld + r, v);
    }
  };
  // Eight may be read wherever another column of them follows.
  const int64_t whole = t.col >= 8 ? cols - 1 : 0;
  for (int64_t k = 0; k < whole; ++k) {
    _mm_prefetch(reinterpret_cast<const char*>(src + (k + kAhead) * t.col), _MM_HINT_T0);
    one_k(k, [](const Code* p, int) { return eight_codes(p); });
  }
  for (int64_t k = whole; k < cols; ++k)
    one_k(k, [&](const Code* p, int r) { return codes_left(p, rows - r); });
}

template <class Code>
void column_values(const CodeTile& t, const Code* src, int rows, int64_t cols, float* dst, int ld) {
  const bool scale_of_k = t.scale_col != 0, offset_of_k = t.offset_col != 0;
  const auto run = [&](auto of_k) {
    constexpr bool kOfK = decltype(of_k)::value;
    if (!t.offset) return column_values<Code, kOfK, false, false>(t, src, rows, cols, dst, ld);
    if (offset_of_k) return column_values<Code, kOfK, true, true>(t, src, rows, cols, dst, ld);
    column_values<Code, kOfK, true, false>(t, src, rows, cols, dst, ld);
  };
  scale_of_k ? run(std::true_type{}) : run(std::false_type{});
}

#endif

template <class Code>
void code_values(const CodeTile& t, int rows, int64_t cols, float* dst, int ld) {
  const auto* const src = static_cast<const Code*>(t.codes);
#if defined(__AVX2__)
  const auto along_both = [](int64_t row, int64_t col) { return row != 0 && col != 0; };
  if (t.row == 1 && t.col != 1 && !along_both(t.scale_row, t.scale_col) &&
      !along_both(t.offset_row, t.offset_col))
    return column_values(t, src, rows, cols, dst, ld);
#endif
  auto* const stage =
      static_cast<float*>(thread_scratch(Scratch::stage, size_t(rows * cols) * sizeof(float)));
  for (int64_t r = 0; r < rows; ++r) row_values(t, src + r * t.row, r, cols, stage + r * cols);
  pack_floats(stage, cols, 1, rows, cols, dst, ld);
}

template <class Code>
void sum_lines(const Code* src, int64_t row, int64_t col, int rows, int64_t k, int32_t* sums) {
  std::fill_n(sums, rows, 0);
  if (col == 1) {
    for (int r = 0; r < rows; ++r) {
      const Code* p = src + r * row;
      int32_t s = 0;
      for (int64_t i = 0; i < k; ++i) s += p[i];
      sums[r] = s;
    }
  } else {
    for (int64_t i = 0; i < k; ++i)
      if (row == 1)
        for (int r = 0; r < rows; ++r) sums[r] += src[i * col + r];
      else
        for (int r = 0; r < rows; ++r) sums[r] += src[i * col + r * row];
  }
}

}  // namespace

void pack_words_transposed(const uint8_t* src, int64_t row_bytes, int rows, int64_t words, uint8_t sub,
                           uint32_t* dst, int ld) {
  for (int64_t c = transpose_blocks(src, row_bytes, rows, words, sub, dst, ld); c < words; ++c)
    for (int r = 0; r < rows; ++r)
      dst[c * ld + r] = subtract_bytes(load_word(src + r * row_bytes + c * 4), sub);
}

void pack_floats(const float* src, int64_t row, int64_t col, int rows, int64_t cols, float* dst, int ld) {
  if (row == 1) return copy_floats(src, col, rows, cols, dst, ld);
  if (col == 1)
    return pack_words_transposed(reinterpret_cast<const uint8_t*>(src), row * 4, rows, cols, 0,
                                 reinterpret_cast<uint32_t*>(dst), ld);
  for (int64_t k = 0; k < cols; ++k)
    for (int r = 0; r < rows; ++r) dst[k * ld + r] = src[r * row + k * col];
}

void pack_floats(const double* src, int64_t row, int64_t col, int rows, int64_t cols, double* dst, int ld) {
  for (int64_t k = 0; k < cols; ++k)
    for (int r = 0; r < rows; ++r) dst[k * ld + r] = src[r * row + k * col];
}

void pack_codes(const uint8_t* src, int64_t row, int64_t col, int rows, int64_t k, uint8_t sub, uint32_t* dst,
                int ld) {
  int64_t done = 0;
  if (col == 1) {
    done = k / 4;
    pack_words_transposed(src, row, rows, done, sub, dst, ld);
  } else if (row == 1) {
    done = interleave_codes(src, col, rows, k, sub, dst, ld);
  }
  for (int64_t w = done; w * 4 < k; ++w)
    for (int r = 0; r < rows; ++r) {
      uint32_t word = 0;
      for (int64_t i = 0; i < std::min<int64_t>(4, k - 4 * w); ++i)
        word |= uint32_t(uint8_t(src[r * row + (4 * w + i) * col] - sub)) << (8 * i);
      dst[w * ld + r] = word;
    }
}

size_t code_tile_bytes(const IntKernel& kernel, int64_t k) {
  return kernel.by_rows ? size_t(kernel.mr) * round_up(size_t(k), 64) + 64
                        : round_up(size_t(ceil_div(k, 4) * kernel.mr) * 4 + 32, 64);
}

void pack_code_tile(const IntKernel& kernel, const uint8_t* src, int64_t row, int64_t col, int rows,
                    int64_t k, uint8_t sub, char* dst) {
  auto* words = reinterpret_cast<uint32_t*>(dst);
  if (!kernel.by_rows) return pack_codes(src, row, col, rows, k, sub, words, rows);
  const size_t line = round_up(size_t(k), 64);
  if (col != 1) {  // words of four k first, then the words transposed
    const int64_t n = ceil_div(k, 4);
    auto* stage = static_cast<uint32_t*>(thread_scratch(Scratch::stage, size_t(n * rows) * 4 + kPackSlack));
    pack_codes(src, row, col, rows, k, sub, stage, rows);
    transpose_words(stage, n, rows, words, int64_t(line / 4));
  }
  for (int r = 0; r < rows; ++r) {
    auto* to = reinterpret_cast<uint8_t*>(dst) + size_t(r) * line;
    int64_t done = k;
    if (col == 1) {
      done = copy_bytes(src + r * row, k, sub, to);
      for (; done < k; ++done) to[done] = uint8_t(src[r * row + done] - sub);
    }
    for (; done < int64_t(line); ++done) to[done] = 0;
  }
}

void sum_codes(const void* src, bool is_signed, int64_t row, int64_t col, int rows, int64_t k,
               int32_t* sums) {
  if (is_signed)
    sum_lines(static_cast<const int8_t*>(src), row, col, rows, k, sums);
  else
    sum_lines(static_cast<const uint8_t*>(src), row, col, rows, k, sums);
}

void pack_code_values(const CodeTile& t, int rows, int64_t cols, float* dst, int ld) {
  if (t.is_signed)
    code_values<int8_t>(t, rows, cols, dst, ld);
  else
    code_values<uint8_t>(t, rows, cols, dst, ld);
}

}  // namespace lowbit::detail
