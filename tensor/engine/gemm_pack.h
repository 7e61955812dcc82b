#pragma once
// Packing: strided operands into the panels of gemm_kernels.h, and the driver both product engines share.
// Internal.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "tensor/core/thread_pool.h"
#include "tensor/engine/gemm.h"
#include "tensor/engine/gemm_kernels.h"
#include "tensor/hd/row.h"

namespace lowbit::detail {

/// Reusable memory of the calling thread, 64-byte aligned, grown on demand and kept. One user per slot at a
/// time.
enum class Scratch : uint8_t { a, b, columns, stage };
void* thread_scratch(Scratch slot, size_t bytes);

/// Packed buffers end with this many spare bytes: vector stores may run past the last element.
inline constexpr size_t kPackSlack = 64;

/// dst[c · ld + r] = word r·row_bytes/4 + c of src, each byte minus `sub` (modulo 256); rows ≤ ld. Words need
/// no alignment. Entries of rows in [rows, ld) and up to 7 words past the end are unspecified.
void pack_words_transposed(const uint8_t* src, int64_t row_bytes, int rows, int64_t words, uint8_t sub,
                           uint32_t* dst, int ld);

/// dst[k · ld + r] = src[r · row + k · col]. Same slack as above.
void pack_floats(const float* src, int64_t row, int64_t col, int rows, int64_t cols, float* dst, int ld);
void pack_floats(const double* src, int64_t row, int64_t col, int rows, int64_t cols, double* dst, int ld);

/// Byte codes into words of four consecutive k, each minus `sub`; the tail of k is filled with zeros.
void pack_codes(const uint8_t* src, int64_t row, int64_t col, int rows, int64_t k, uint8_t sub, uint32_t* dst,
                int ld);

/// Bytes of a packed integer tile of A.
size_t code_tile_bytes(const IntKernel& kernel, int64_t k);

/// Bytes between its rows, 0 where it holds words.
inline int64_t packed_row(const IntKernel& kernel, int64_t k) {
  return kernel.by_rows ? (k + 63) / 64 * 64 : 0;
}

/// The same into a tile of A as the kernel wants it.
void pack_code_tile(const IntKernel& kernel, const uint8_t* src, int64_t row, int64_t col, int rows,
                    int64_t k, uint8_t sub, char* dst);

/// Words of a packed panel of B: k rounded up to 64, so that a kernel may step by 16 words.
inline int64_t panel_words(int64_t k) { return (k + 63) / 64 * 16; }

/// sums[r] = Σ_k code[r, k]
void sum_codes(const void* src, bool is_signed, int64_t row, int64_t col, int rows, int64_t k, int32_t* sums);

/// Codes and what they mean: element (r, k) is at codes[r · row + k · col], its step and offset likewise.
struct CodeTile {
  const void* codes;
  bool is_signed;
  int64_t row, col;
  float shift;
  const float* scale;
  int64_t scale_row, scale_col;
  const float* offset;  ///< null: none is added
  int64_t offset_row, offset_col;
};

/// dst[k · ld + r] = fl(fl(scale · (code + shift)) + offset). Same slack as above.
void pack_code_values(const CodeTile& t, int rows, int64_t cols, float* dst, int ld);

inline size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

/// Shape, device and bias checks of both kinds of product, and everything of the arguments but alpha and
/// beta. C becomes [..., M, N] of type t; `b` is seen as [..., K, N] and has a's K.
void set_product(const char* op, ProductArgs& g, Tensor& out, DType t, const GemmInput& a, const GemmInput& b,
                 const Tensor& bias);

/// Two batches read the same B.
inline bool same_b(const ProductArgs& g, int64_t x, int64_t y) {
  const BatchIndex i = BatchIndex::of(g, x), j = BatchIndex::of(g, y);
  for (const GemmOperand::Strides* s : {&g.b.stride, &g.b.scale_stride, &g.b.offset_stride})
    if (i.offset(s->batch) != j.offset(s->batch)) return false;
  return true;
}

/// Batch dimensions that B does not see and that continue the rows of A and C become rows: one product, B
/// packed once.
inline void fold_batches(ProductArgs& g, const GemmOperand::Strides* more = nullptr) {
  for (int d = kMaxBatchDims - 1; d >= 0; --d) {
    if (g.batch[d] == 1) continue;
    bool fold = g.c_batch[d] == g.m * g.c_row;
    for (const GemmOperand::Strides* s : {&g.b.stride, &g.b.scale_stride, &g.b.offset_stride})
      fold = fold && s->batch[d] == 0;
    for (const GemmOperand::Strides* s : std::initializer_list<const GemmOperand::Strides*>{
             &g.a.stride, &g.a.scale_stride, &g.a.offset_stride, more})
      fold = fold && (!s || s->batch[d] == g.m * s->row);
    if (!fold) return;
    g.m *= g.batch[d];
    g.batch[d] = 1;
  }
}

/// Work split of one product [batches, m, n]: rows in tiles of at most mr, columns in panels, k in blocks.
struct Blocking {
  int64_t batches, m, n;
  int mr;
  int64_t k_blocks;
  size_t a_tile_bytes, b_panel_bytes, column_bytes;  // per row tile and k block; panel and k block; panel
  double work;                                       // multiply-adds of the whole product
  bool rows_only = false;                            // never split columns: a row of A is packed exactly once
  bool keep_a = false;  // one k block, large panels of B: all of A is packed first, a panel where it is used
  bool full_tiles = false;  // all but the last have mr rows; else they are of nearly equal height
  int64_t tiles() const { return ceil_div(m, mr); }
  int64_t panels() const { return ceil_div(n, kPanel); }
};

/// Engine: place(batch) → Place; pack_a(place, k_block, row, rows, dst), pack_b(place, k_block, col, cols,
/// dst), prepare(place, panel0, panel1, packed_b, columns), prepacked() (null: pack), same_b(batch, batch),
/// tile(place, k_block, row, rows, col, cols, a, b, columns of the panel). a_tile_bytes = 0: A is not packed.
/// An element of the result is computed by exactly one tile per k block, in increasing k block: the partition
/// over threads changes nothing.
template <class Engine>
class BlockedProduct {
 public:
  BlockedProduct(const Engine& e, const Blocking& b)
      : e_(e),
        b_(b),
        height_(b.full_tiles ? b.mr : b.m / std::max<int64_t>(1, b.tiles())),
        taller_(b.full_tiles ? 0 : b.m - height_ * b.tiles()) {}

  void run() const {
    if (b_.batches * b_.m * b_.n == 0) return;
    const int threads_used = b_.work < kSerialWork ? 1 : threads();
    if (b_.keep_a && b_.batches == 1) return run_keeping_a(threads_used);
    const int64_t tiles = b_.tiles();
    if (threads_used == 1)
      run_batches(0, b_.batches * tiles);
    else if (b_.batches >= 8 * threads_used)  // enough to share them whole: B of each is packed once
      parallel_for(b_.batches, 1, [&](int64_t b0, int64_t b1) { run_batches(b0 * tiles, b1 * tiles); });
    else if (b_.batches >= 2 * threads_used)
      parallel_for(b_.batches * tiles, 1, [&](int64_t begin, int64_t end) { run_batches(begin, end); });
    else
      for (int64_t i = 0; i < b_.batches; ++i) run_shared(i, threads_used);
  }

 private:
  static constexpr double kSerialWork = 1 << 17;
  static constexpr size_t kPackedBytes = 8 << 20;  // packed B kept at a time
  static constexpr size_t kRowBlockBytes = 256 << 10;
  static constexpr int64_t kTilesInPlace = 12;
  static constexpr size_t kPanelsInL2 = 1 << 20, kPanelsBesideA = 128 << 10;

  int64_t chunk() const {  // k blocks packed at a time
    const size_t one = b_.b_panel_bytes * size_t(b_.panels());
    return std::clamp<int64_t>(int64_t(kPackedBytes / one), 1, b_.k_blocks);
  }
  size_t panel_offset(int64_t k_block, int64_t panel) const {
    return size_t(k_block * b_.panels() + panel) * b_.b_panel_bytes;
  }
  /// First row of a tile. The first ones are a row taller where they are of nearly equal height.
  int64_t row(int64_t tile) const { return std::min(b_.m, tile * height_ + std::min(tile, taller_)); }
  int panel_cols(int64_t panel) const { return int(std::min<int64_t>(kPanel, b_.n - panel * kPanel)); }

  /// Independent (batch, row tile) units: every thread packs what it needs.
  void run_batches(int64_t begin, int64_t end) const {
    const int64_t tiles = b_.tiles(), step = chunk();
    auto* packed = static_cast<char*>(
        thread_scratch(Scratch::b, e_.prepacked() ? 0 : panel_offset(step, 0) + kPackSlack));
    int64_t last = -1;
    for (int64_t batch = begin / tiles; batch * tiles < end; ++batch) {
      const int64_t t0 = std::max(begin - batch * tiles, int64_t{0}),
                    t1 = std::min(end - batch * tiles, tiles);
      for (int64_t k0 = 0; k0 < b_.k_blocks; k0 += step) {
        const int64_t k1 = std::min(k0 + step, b_.k_blocks);
        const bool reuse = step == b_.k_blocks && last >= 0 && e_.same_b(last, batch);
        const char* ready = e_.prepacked();
        if (!ready && !reuse) pack_b(batch, k0, 0, (k1 - k0) * b_.panels(), packed);
        compute(batch, k0, k1, t0, t1, 0, b_.panels(), ready ? ready : packed);
      }
      last = batch;
    }
  }

  /// One product, all threads: B is packed together, then rows (or columns, when rows are few) are split.
  void run_shared(int64_t batch, int threads_used) const {
    const int64_t tiles = b_.tiles(), panels = b_.panels(), step = chunk();
    const char* ready = e_.prepacked();
    auto* packed =
        static_cast<char*>(thread_scratch(Scratch::b, ready ? 0 : panel_offset(step, 0) + kPackSlack));
    const bool by_rows = b_.rows_only || tiles >= 2 * threads_used || tiles >= panels;
    for (int64_t k0 = 0; k0 < b_.k_blocks; k0 += step) {
      const int64_t k1 = std::min(k0 + step, b_.k_blocks);
      if (!ready)
        parallel_for((k1 - k0) * panels, 1,
                     [&](int64_t p0, int64_t p1) { pack_b(batch, k0, p0, p1, packed); });
      const char* b = ready ? ready : packed;
      if (by_rows)
        parallel_for(tiles, 1, [&](int64_t t0, int64_t t1) { compute(batch, k0, k1, t0, t1, 0, panels, b); });
      else
        parallel_for(panels, 1, [&](int64_t p0, int64_t p1) { compute(batch, k0, k1, 0, tiles, p0, p1, b); });
    }
  }

  void run_keeping_a(int threads_used) const {
    const int64_t tiles = b_.tiles(), panels = b_.panels();
    const auto grain = [&](int64_t n) { return threads_used == 1 ? n : 1; };
    const auto place = e_.place(0);
    auto* const a =
        static_cast<char*>(thread_scratch(Scratch::a, size_t(tiles) * b_.a_tile_bytes + kPackSlack));
    parallel_for(tiles, grain(tiles), [&](int64_t t0, int64_t t1) {
      for (int64_t t = t0; t < t1; ++t)
        e_.pack_a(place, 0, row(t), int(row(t + 1) - row(t)), a + size_t(t) * b_.a_tile_bytes);
    });
    parallel_for(panels, grain(panels), [&](int64_t p0, int64_t p1) {
      auto* const b = static_cast<char*>(thread_scratch(Scratch::b, b_.b_panel_bytes + kPackSlack));
      [[maybe_unused]] const auto session = e_.session();
      for (int64_t p = p0; p < p1; ++p) {
        e_.pack_b(place, 0, p * kPanel, panel_cols(p), b);
        for (int64_t t = 0; t < tiles; ++t)
          e_.tile(place, 0, row(t), int(row(t + 1) - row(t)), p * kPanel, panel_cols(p),
                  a + size_t(t) * b_.a_tile_bytes, b, nullptr);
      }
    });
  }

  void pack_b(int64_t batch, int64_t k0, int64_t begin, int64_t end, char* packed) const {
    const auto place = e_.place(batch);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t k = i / b_.panels(), panel = i % b_.panels();
      e_.pack_b(place, k0 + k, panel * kPanel, panel_cols(panel), packed + panel_offset(k, panel));
    }
  }

  void compute(int64_t batch, int64_t k0, int64_t k1, int64_t t0, int64_t t1, int64_t p0, int64_t p1,
               const char* packed) const {
    const int64_t group =
        b_.a_tile_bytes ? std::max<int64_t>(1, int64_t(kRowBlockBytes / b_.a_tile_bytes)) : kTilesInPlace;
    auto* a = static_cast<char*>(
        thread_scratch(Scratch::a, size_t(std::min(group, t1 - t0)) * b_.a_tile_bytes + kPackSlack));
    auto* columns = static_cast<char*>(thread_scratch(Scratch::columns, size_t(p1 - p0) * b_.column_bytes));
    const auto place = e_.place(batch);
    const auto session = e_.session();
    e_.prepare(place, p0, p1, packed, columns);
    // Whole rows of C one after the other are written faster; B is then read from the second level cache, of
    // which rows of A that are not packed need more.
    const size_t b_bytes = size_t(p1 - p0) * b_.b_panel_bytes;
    const bool by_rows = b_.k_blocks == 1 && b_bytes <= (b_.a_tile_bytes ? kPanelsInL2 : kPanelsBesideA);
    for (int64_t g0 = t0; g0 < t1; g0 += group) {  // this block of C stays in the cache over the k blocks
      const int64_t g1 = std::min(g0 + group, t1);
      const auto one = [&](int64_t k, int64_t t, int64_t p) {
        e_.tile(place, k, row(t), int(row(t + 1) - row(t)), p * kPanel, panel_cols(p),
                a + size_t(t - g0) * b_.a_tile_bytes, packed + panel_offset(k - k0, p),
                columns + size_t(p - p0) * b_.column_bytes);
      };
      const auto panel = [&](int64_t k, int64_t p) {
        for (int64_t t = g0; t < g1; ++t) one(k, t, p);
      };
      if (!b_.a_tile_bytes && !by_rows) {
        for (int64_t p = p0; p < p1; ++p)
          for (int64_t k = k0; k < k1; ++k) panel(k, p);
        continue;
      }
      for (int64_t k = k0; k < k1; ++k) {
        if (b_.a_tile_bytes)
          for (int64_t t = g0; t < g1; ++t)
            e_.pack_a(place, k, row(t), int(row(t + 1) - row(t)), a + size_t(t - g0) * b_.a_tile_bytes);
        if (by_rows)
          for (int64_t t = g0; t < g1; ++t)
            for (int64_t p = p0; p < p1; ++p) one(k, t, p);
        else
          for (int64_t p = p0; p < p1; ++p) panel(k, p);
      }
      session.flush();
    }
  }

  const Engine& e_;
  const Blocking b_;
  const int64_t height_, taller_;
};

}  // namespace lowbit::detail
