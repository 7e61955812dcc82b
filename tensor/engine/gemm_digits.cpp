#include "tensor/engine/gemm_digits.h"

#include <cmath>
#include <limits>
#include <utility>

#include "tensor/engine/gemm_digits_kernels.h"
#include "tensor/engine/gemm_pack.h"

namespace lowbit::detail {

namespace {

bool is_codes(const GemmOperand& o) { return o.dtype == DType::u8 || o.dtype == DType::i8; }

void split_line(const SplitLineArgs& a, SplitLines& out, int line) {
  const auto at = [&a](int64_t k) { return a.x[k * a.step] * (a.scale ? a.scale[k * a.scale_step] : 1.f); };
  int32_t top = 0;
  for (int64_t k = 0; k < a.k; ++k) top = std::max(top, magnitude_bits(at(k)));
  const float v = fixed_point(top, a.digits);
  int64_t sum = 0;
  for (int64_t k = 0; k < a.k; ++k) {
    const int32_t q = int32_t(std::rint(at(k) * v));
    sum += q;
    for (int d = 0; d < a.digits; ++d) a.plane[d][k] = uint8_t(uint32_t(q + digit_zero(a.digits)) >> 8 * d);
  }
  out.top[line] = top, out.v[line] = v, out.sum[line] = double(sum);
}

void split_panel(const SplitPanelArgs& a, SplitLines& out) {
  const auto at = [&a](int64_t k, int c) {
    return a.x[k * a.next + c * a.col] * (a.scale ? a.scale[k * a.scale_step] : 1.f);
  };
  for (int64_t k = 0; k < a.k; ++k)
    for (int c = 0; c < a.cols; ++c) out.top[c] = std::max(out.top[c], magnitude_bits(at(k, c)));
  for (int c = 0; c < a.cols; ++c) out.v[c] = fixed_point(out.top[c], a.digits);
  auto* const bytes = reinterpret_cast<uint8_t*>(a.words);
  for (int64_t k = 0; k < a.k; ++k)
    for (int c = 0; c < a.cols; ++c) {
      const int32_t q = int32_t(std::rint(at(k, c) * out.v[c]));
      out.sum[c] += q;
      for (int d = 0; d < a.digits; ++d)
        bytes[4 * (d * a.plane + k / 4 * a.width + c) + k % 4] =
            uint8_t((uint32_t(q + digit_zero(a.digits)) >> 8 * d) - 128);
    }
}

void digit_sums(const DigitSums& a) {
  constexpr int kPlane = kMaxRows * kPanel;
  for (int r = 0; r < a.rows; ++r)
    for (int j = 0; j < a.cols; ++j) {
      const int32_t* const acc = a.acc + r * kPanel + j;
      double sum = double(acc[0]) + 256.0 * double(acc[kPlane]);
      if (a.digits == 3) sum += 65536.0 * double(acc[2 * kPlane]);
      sum += a.row->add[r] + a.col->add[j];
      const double y = a.row->factor[r] * a.col->factor[j] * sum;
      a.y[r * a.ldy + j] = float(a.offset ? y + a.row->offset[r] * a.col->offset[j] : y);
    }
}

/// 1 / v; NaN when the line holds a NaN or an infinity, whose bits are larger than those of any number.
double unit_of(int32_t top_bits, float v) {
  if (top_bits >= 0x7f800000) return std::numeric_limits<double>::quiet_NaN();
  return v > 0 ? 1 / double(v) : 0;
}

class DigitEngine {
 public:
  DigitEngine(const GemmArgs& g, IntKernel kernel)
      : g_(g),
        kernel_(kernel),
        digits_(digit_kernel(current_isa())),
        floats_in_a_(!is_codes(g.a)),
        codes_(floats_in_a_ ? g.b : g.a),
        zero_(floats_in_a_ ? (codes_.hi > 127 ? 128 : 0) : std::min(codes_.lo, 0)),
        max_code_(std::max(std::abs(codes_.lo - zero_), std::abs(codes_.hi - zero_))),
        tile_bytes_(code_tile_bytes(kernel, g.k)),
        panel_data_(size_t(panel_words(g.k)) * kPanel * 4) {
    // Bytes of q + 2^23 are unsigned; in B they are signed: each less 128.
    double ones = 0;
    for (int d = 0; d < g.digits; ++d) ones = ones * 256 + 1;
    bias_ = std::ldexp(1.0, 8 * g.digits - 1) - (floats_in_a_ ? 0 : 128 * ones);
  }

  Blocking blocking() const {
    const int64_t batches = g_.batch[0] * g_.batch[1] * g_.batch[2];
    return {batches,
            g_.m,
            g_.n,
            kernel_.mr,
            1,
            a_planes() * tile_bytes_ + sizeof(DigitLines),
            b_planes() * panel_data_ + sizeof(DigitLines),
            0,
            double(batches) * g_.m * g_.n * g_.k,
            false,
            !floats_in_a_};
  }
  struct Place {
    BatchIndex index;
    int64_t a, b;
    float* c;
  };
  Place place(int64_t batch) const {
    const BatchIndex i = BatchIndex::of(g_, batch);
    return {i, i.offset(g_.a.stride.batch), i.offset(g_.b.stride.batch),
            static_cast<float*>(g_.c) + i.offset(g_.c_batch)};
  }
  const char* prepacked() const { return nullptr; }
  void prepare(const Place&, int64_t, int64_t, const char*, char*) const {}
  IntSession session() const { return IntSession(kernel_); }
  bool same_b(int64_t x, int64_t y) const { return detail::same_b(g_, x, y); }

  void pack_a(const Place& at, int64_t, int64_t row, int rows, char* dst) const {
    DigitLines& lines = *new (dst + a_planes() * tile_bytes_) DigitLines;
    if (floats_in_a_)
      split_rows(at, row, rows, dst, lines);
    else
      pack_code_tile(kernel_, codes_at(at.a, row), codes_.stride.row, codes_.stride.k, rows, g_.k,
                     uint8_t(zero_), dst),
          code_lines(at, at.a, row, rows, lines);
  }
  void pack_b(const Place& at, int64_t, int64_t col, int cols, char* dst) const {
    DigitLines& lines = *new (dst + b_planes() * panel_data_) DigitLines;
    if (!floats_in_a_)
      split_columns(at, col, cols, dst, lines);
    else
      pack_codes(codes_at(at.b, col), codes_.stride.row, codes_.stride.k, cols, g_.k, uint8_t(zero_),
                 reinterpret_cast<uint32_t*>(dst), panel_width(cols)),
          code_lines(at, at.b, col, cols, lines);
  }

  void tile(const Place& at, int64_t, int64_t row, int rows, int64_t col, int cols, const char* a,
            const char* b, const char*) const {
    static constexpr RowInfo no_row{};
    static constexpr ColInfo no_col{};
    alignas(64) int32_t acc[kMaxDigits][kMaxRows * kPanel];
    for (int d = 0; d < g_.digits; ++d)
      kernel_.run({rows, cols, ceil_div(g_.k, 4),
                   reinterpret_cast<const uint32_t*>(a + (floats_in_a_ ? size_t(d) * tile_bytes_ : 0)),
                   reinterpret_cast<const uint32_t*>(b + (floats_in_a_ ? 0 : size_t(d) * panel_data_)),
                   panel_width(cols), 2 * max_code_ * (floats_in_a_ ? 255 : 128) <= 32767, IntOut::s32, 0,
                   &no_row, &no_col, acc[d], kPanel, true});
    const DigitLines& rs = *reinterpret_cast<const DigitLines*>(a + a_planes() * tile_bytes_);
    const DigitLines& cs = *reinterpret_cast<const DigitLines*>(b + b_planes() * panel_data_);
    float* const c = at.c + row * g_.c_row + col * g_.c_col;
    if (g_.c_col == 1)
      return digits_.sums({acc[0], rows, cols, g_.digits, codes_.offset != nullptr, &rs, &cs, c, g_.c_row});
    alignas(64) float y[kMaxRows * kPanel];
    digits_.sums({acc[0], rows, cols, g_.digits, codes_.offset != nullptr, &rs, &cs, y, kPanel});
    for (int j = 0; j < cols; ++j)
      for (int r = 0; r < rows; ++r) c[r * g_.c_row + j * g_.c_col] = y[r * kPanel + j];
  }

 private:
  size_t a_planes() const { return floats_in_a_ ? size_t(g_.digits) : 1; }
  size_t b_planes() const { return floats_in_a_ ? 1 : size_t(g_.digits); }

  const uint8_t* codes_at(int64_t base, int64_t line) const {
    return static_cast<const uint8_t*>(codes_.data) + base + line * codes_.stride.row;
  }
  double code_shift() const { return zero_ + codes_.shift; }
  bool scale_along_k() const { return codes_.scale_stride.k != 0; }

  void code_lines(const Place& at, int64_t base, int64_t line, int lines, DigitLines& out) const {
    int32_t sums[kPanel];
    sum_codes(codes_at(base, line), codes_.dtype == DType::i8, codes_.stride.row, codes_.stride.k, lines,
              g_.k, sums);
    const auto &ss = codes_.scale_stride, &os = codes_.offset_stride;
    for (int i = 0; i < lines; ++i) {
      out.add[i] = -bias_ * double(sums[i] - g_.k * zero_);
      out.factor[i] =
          scale_along_k() ? 1 : double(codes_.scale[at.index.offset(ss.batch) + (line + i) * ss.row]);
      if (codes_.offset)
        out.offset[i] = double(codes_.offset[at.index.offset(os.batch) + (line + i) * os.row]);
    }
  }

  void float_lines(const SplitLines& split, int lines, DigitLines& out) const {
    for (int i = 0; i < lines; ++i) {
      out.factor[i] = g_.alpha * unit_of(split.top[i], split.v[i]);
      out.add[i] = code_shift() * split.sum[i];
      out.offset[i] = out.factor[i] * split.sum[i];
    }
  }

  const float* scale_of_k(const Place& at) const {
    return scale_along_k() ? codes_.scale + at.index.offset(codes_.scale_stride.batch) : nullptr;
  }

  /// Floats as A: planes of [rows][k].
  void split_rows(const Place& at, int64_t row, int rows, char* dst, DigitLines& out) const {
    const size_t line = round_up(size_t(g_.k), 64);
    const bool staged = !kernel_.by_rows;
    auto* const planes = reinterpret_cast<uint8_t*>(
        staged ? thread_scratch(Scratch::stage, size_t(g_.digits) * kernel_.mr * line + kPackSlack) : dst);
    const size_t plane = staged ? kernel_.mr * line : tile_bytes_;
    SplitLines split;
    SplitLineArgs args{static_cast<const float*>(g_.a.data) + at.a + row * g_.a.stride.row,
                       g_.a.stride.k,
                       g_.k,
                       scale_of_k(at),
                       codes_.scale_stride.k,
                       g_.digits,
                       {}};
    for (int r = 0; r < rows; ++r, args.x += g_.a.stride.row) {
      for (int d = 0; d < g_.digits; ++d) {
        args.plane[d] = planes + size_t(d) * plane + size_t(r) * line;
        std::fill(args.plane[d] + g_.k, args.plane[d] + line, uint8_t(0));
      }
      digits_.line(args, split, r);
    }
    float_lines(split, rows, out);
    for (int d = 0; staged && d < g_.digits; ++d)
      pack_codes(planes + size_t(d) * plane, int64_t(line), 1, rows, g_.k, 0,
                 reinterpret_cast<uint32_t*>(dst + size_t(d) * tile_bytes_), rows);
  }

  /// Floats as B: planes of words of four k.
  void split_columns(const Place& at, int64_t col, int cols, char* dst, DigitLines& out) const {
    SplitLines split;
    digits_.panel({static_cast<const float*>(g_.b.data) + at.b + col * g_.b.stride.row, g_.b.stride.row,
                   g_.b.stride.k, g_.k, scale_of_k(at), codes_.scale_stride.k, cols, g_.digits,
                   panel_width(cols), reinterpret_cast<uint32_t*>(dst), int64_t(panel_data_ / 4)},
                  split);
    float_lines(split, cols, out);
  }

  const GemmArgs& g_;
  const IntKernel kernel_;
  const DigitKernel digits_;
  const bool floats_in_a_;
  const GemmOperand& codes_;
  const int zero_, max_code_;  // packed code = code − zero
  const size_t tile_bytes_, panel_data_;
  double bias_;
};

}  // namespace

DigitKernel digit_kernel(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::avx512) return {split_line_avx512, split_panel_avx512, digit_sums_avx512};
#endif
  (void)isa;
  return {split_line, split_panel, digit_sums};
}

bool digits_apply(const GemmArgs& g) {
  const bool a = is_codes(g.a), b = is_codes(g.b);
  if (a == b || g.c_dtype != DType::f32 || g.bias || g.beta != 0) return false;
  const GemmOperand& codes = a ? g.a : g.b;
  if (codes.offset && (codes.offset_stride.k != 0 || codes.scale_stride.k != 0)) return false;
  const double largest = std::max(codes.hi - std::min(codes.lo, 0), 128);
  return 255.0 * largest * double(g.k) <= std::numeric_limits<int32_t>::max();
}

void gemm_digits_cpu(GemmArgs g) {
  // Floats whose line is contiguous along k are split as A, others as B.
  const GemmOperand& floats = is_codes(g.a) ? g.b : g.a;
  const bool as_a = floats.stride.k == 1 || floats.stride.row != 1;
  if (as_a == is_codes(g.a)) {
    std::swap(g.a, g.b);
    std::swap(g.m, g.n);
    std::swap(g.c_row, g.c_col);
  }
  fold_batches(g);
  const DigitEngine e(g, gemm_kernel_int8(current_isa()));
  BlockedProduct(e, e.blocking()).run();
}

}  // namespace lowbit::detail
