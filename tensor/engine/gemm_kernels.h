#pragma once
// Micro-kernels of the matrix products: one tile of the result from two packed panels. Internal to the
// engine.
//
// Packed A tile: [k][rows], rows ≤ mr; float tiles of a row-major A are also read in place.  Packed B panel:
// [k][width], width 32, or 16 when it has ≤ 16 columns. The integer kernels hold four consecutive k of one
// row in one 32-bit word: [k/4][rows] words, k padded by zeros; AMX reads A by rows, [rows][k rounded up to
// 64] bytes. Every float kernel runs the same chain per element: s = fma(a_k, b_k, s) over k in increasing
// order from 0.

#include <cstdint>

#include "tensor/engine/isa.h"

namespace lowbit::detail {

inline constexpr int kPanel = 32;    // columns of a packed panel of B
inline constexpr int kMaxRows = 32;  // upper bound of mr over all kernels

static constexpr int panel_width(int64_t cols) { return cols <= kPanel / 2 ? kPanel / 2 : kPanel; }

/// c = alpha·s (beta = 0, c is not read) or fma(alpha, s, beta·c); then + bias[n].
template <class T>
struct Tile {
  int rows, cols;
  int64_t k;
  const T* a;
  int64_t a_row, a_k;  // (1, rows): packed; (stride, 1): A itself
  const T* b;
  int64_t b_step;  // elements between two k of b: the panel width
  T* c;
  int64_t ldc;
  T alpha, beta;
  const T* bias;  // or null
};

template <class T>
struct FloatKernel {
  int mr;
  bool in_place;  // reads a row-major A well
  void (*run)(const Tile<T>&);
};

FloatKernel<float> gemm_kernel_f32(Isa isa);
FloatKernel<double> gemm_kernel_f64();

/// What the epilogue of an integer tile needs of its rows and columns; see gemm_int8.h for the formulas.
struct RowInfo {
  int32_t correction[kMaxRows];
  float scale[kMaxRows];
  double sum[kMaxRows], a[kMaxRows], z[kMaxRows], q[kMaxRows];
};
struct ColInfo {
  int32_t correction[kPanel];
  float scale[kPanel], bias[kPanel];
  double sum[kPanel], w[kPanel], u[kPanel], e[kPanel];
};

enum class IntOut : uint8_t { s32, f32, f64 };

struct WordRange {
  int32_t begin, end;
};

struct IntTile {
  int rows, cols;
  int64_t words;  // ceil(k / 4)
  const uint32_t* a;
  int64_t a_row;  // bytes between rows of A where it is read by rows; 0: words of four k
  const uint32_t* b;
  int64_t b_step;
  int words16;  // words of products whose sums fit 16 bits, pair by pair; words_in_16_bits()
  IntOut out;
  int shift;  // s32, f32: v = (acc << shift) + row.correction + col.correction, modulo 2^32
  const RowInfo* row;
  const ColInfo* col;
  void* c;  // int32 or float
  int64_t ldc;
  bool plain = false;  // s32, corrections are 0, and c has room for the whole tile: [kMaxRows][kPanel]
  const WordRange* ranges = nullptr;  // of the words, beginning at multiples of 16; null: all of them
  int range_count = 0;
};

/// How many words of four products, two sums of pairs each, add up without leaving 16 bits; 0: not even one.
static constexpr int words_in_16_bits(int max_a, int max_b) {
  return max_a * max_b == 0 ? 32767 : 32767 / (2 * max_a * max_b);
}

/// f(begin, end) for every range of words that enters the product.
template <class F>
static inline __attribute__((always_inline)) void for_ranges(const IntTile& t, F f) {
  const WordRange all{0, int32_t(t.words)};
  const WordRange* r = t.ranges ? t.ranges : &all;
  for (int left = t.ranges ? t.range_count : 1; left > 0; --left, ++r) f(r->begin, r->end);
}

struct IntKernel {
  int mr;
  bool by_rows;   // how A is packed: [mr][k rounded up to 64] bytes
  bool in_place;  // reads a row-major A well: of k that are multiples of 64 if by_rows, else of any
  void (*run)(const IntTile&);
  void (*begin)() = nullptr;  // around a series of tiles on one thread; or null
  void (*end)() = nullptr;
  void (*flush)() = nullptr;  // writes the results that run() left for later; or null
};

/// A series of integer tiles. What a tile refers to must live until the next flush.
class IntSession {
 public:
  explicit IntSession(const IntKernel& k) : end_(k.end), flush_(k.flush) {
    if (k.begin) k.begin();
  }
  ~IntSession() {
    if (end_) end_();
  }
  IntSession(const IntSession&) = delete;
  void flush() const {
    if (flush_) flush_();
  }

 private:
  void (*end_)();
  void (*flush_)();
};

IntKernel gemm_kernel_int8(Isa isa);

void gemm_tile_f32_avx512(const Tile<float>&);
void gemm_tile_int8_avx512(const IntTile&);
void gemm_tile_int8_amx(const IntTile&);
void amx_begin();
void amx_end();
void amx_flush();
void gemm_tile_f32_avx2(const Tile<float>&);
void gemm_tile_int8_avx2(const IntTile&);

/// Epilogue from accumulators in memory, acc[r · kPanel + c]; the definition the vector kernels must equal.
void int_epilogue(const IntTile& t, int row0, int rows, int col0, int cols, const int32_t* acc);

}  // namespace lowbit::detail
