#pragma once
// What the kernels of integer products share: lines of codes on their way to shared memory, and the results
// of a warp.

#include <cstdint>

#include "tensor/engine/gemm.cuh"
#include "tensor/engine/mma.cuh"

namespace lowbit::cuda {

inline constexpr int kStageWords = 16;  // of a line in shared memory: 64 consecutive k
inline constexpr int kWarpWords = 8;    // of one warp product
inline constexpr int kStageLine =
    kProductTile + 8;  // the eight lines and four words that a warp reads: other banks
inline constexpr int kOwnWords = kStageWords * kProductTile / kProductThreads;  // that a thread moves
inline constexpr int kWarpsDown = 4, kWarpsAcross = kProductThreads / 32 / kWarpsDown;
inline constexpr int kProducts =
    kProductTile / kWarpsAcross / 8;  // of 16 x 8 results, side by side, for each warp
static_assert(kWarpsDown * 16 == kProductTile);
using WordStage = uint32_t[kStageWords][kStageLine];

/// Lines [first, first + kProductTile) of an operand in one batch.
struct CodeLines {
  const uint8_t* data;
  int64_t row, k_step, count, k;
  uint32_t zeros;  ///< the zero code in each byte
  bool whole_words;

  __device__ CodeLines(const GemmOperand& o, const BatchIndex& i, int64_t first, int64_t lines, int64_t k,
                       int zero, bool aligned)
      : data(static_cast<const uint8_t*>(o.data) + i.offset(o.stride.batch) + first * o.stride.row),
        row(o.stride.row),
        k_step(o.stride.k),
        count(lines - first),
        k(k),
        zeros(uint32_t(uint8_t(zero)) * 0x01010101u),
        whole_words(aligned) {}

  /// Four consecutive packed codes of a line; zeros outside.
  __device__ uint32_t word(int line, int64_t at) const {
    if (line >= count || at >= k) return 0;
    const uint8_t* const from = data + line * row;
    if (whole_words && at + 4 <= k) return __vsub4(*reinterpret_cast<const uint32_t*>(from + at), zeros);
    uint32_t w = 0;
    for (int i = 0; i < 4; ++i)
      if (at + i < k) w |= uint32_t(uint8_t(from[(at + i) * k_step] - uint8_t(zeros))) << (8 * i);
    return w;
  }
  /// Neighbouring threads read neighbouring bytes. Registers first: the words of the next step travel while
  /// this one is multiplied.
  __device__ void fetch(int64_t at, uint32_t (&own)[kOwnWords]) const {
#pragma unroll
    for (int i = 0; i < kOwnWords; ++i) {
      const auto [line, w] = place(i);
      own[i] = word(line, at + 4 * w);
    }
  }
  __device__ void store(const uint32_t (&own)[kOwnWords], WordStage& to) const {
#pragma unroll
    for (int i = 0; i < kOwnWords; ++i) {
      const auto [line, w] = place(i);
      to[w][line] = own[i];
    }
  }

 private:
  struct Place {
    int line, w;
  };
  __device__ Place place(int i) const {
    const int t = int(threadIdx.x) + i * kProductThreads;
    return k_step == 1 ? Place{t / kStageWords, t % kStageWords} : Place{t % kProductTile, t / kProductTile};
  }
};

/// Σ_k of a line's packed codes and Σ_k weight_k · (packed + shift), k in increasing order: the terms'
/// inputs.
struct LineSums {
  int32_t plain = 0;
  double weighted = 0;

  template <bool Signed, class Words>
  __device__ void add(const Words& words, int line, int64_t at, int64_t k, double shift, const float* weight,
                      int64_t step) {
    for (int w = 0; w < kStageWords; ++w) {
      const uint32_t word = words[w][line];
      plain = Signed ? dot4(0x01010101u, word, plain) : dot4(word, 0x01010101u, plain);
      for (int i = 0; weight && i < 4 && at + 4 * w + i < k; ++i) {
        const uint8_t byte = uint8_t(word >> (8 * i));
        const double value = Signed ? double(int8_t(byte)) : double(byte);
        weighted += double(weight[(at + 4 * w + i) * step]) * (value + shift);
      }
    }
  }
};

/// The 16 x 32 results of a warp: `acc` of mma_16x8x32, side by side.
struct WarpTile {
  int row, col, g, t;  ///< of the first result in the block's tile, and the lane's place
  int32_t acc[kProducts][4] = {};

  __device__ WarpTile() {
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    row = warp % kWarpsDown * 16, col = warp / kWarpsDown * kProducts * 8;
    g = lane / 4, t = lane % 4;
  }
  __device__ void add(const WordStage& a, const WordStage& b) {
#pragma unroll
    for (int w = 0; w < kStageWords; w += kWarpWords) {
      const uint32_t of_a[4] = {a[w + t][row + g], a[w + t][row + g + 8], a[w + t + 4][row + g],
                                a[w + t + 4][row + g + 8]};
#pragma unroll
      for (int p = 0; p < kProducts; ++p) {
        const uint32_t of_b[2] = {b[w + t][col + 8 * p + g], b[w + t + 4][col + 8 * p + g]};
        mma_16x8x32(acc[p], of_a, of_b);
      }
    }
  }
  /// f(row, column, p, i) for every own result acc[p][i]; row and column in the block's tile.
  template <class F>
  __device__ void each(F f) const {
#pragma unroll
    for (int p = 0; p < kProducts; ++p)
#pragma unroll
      for (int i = 0; i < 4; ++i) f(row + g + i / 2 * 8, col + 8 * p + 2 * t + i % 2, p, i);
  }
};

/// Lines of consecutive codes that start at multiples of four bytes.
inline bool word_aligned(const GemmOperand& o) {
  int64_t all = int64_t(reinterpret_cast<uintptr_t>(o.data)) | o.stride.row;
  for (const int64_t s : o.stride.batch) all |= s;
  return o.stride.k == 1 && all % 4 == 0;
}

}  // namespace lowbit::cuda
