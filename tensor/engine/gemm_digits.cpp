#include "tensor/engine/gemm_digits.h"

#include <bit>
#include <cmath>
#include <limits>
#include <utility>

#include "tensor/engine/accumulate.h"
#include "tensor/engine/column.h"
#include "tensor/engine/gemm_digits_kernels.h"
#include "tensor/engine/gemm_operand.h"
#include "tensor/engine/gemm_pack.h"

namespace lowbit::detail {

namespace {

float value(const SplitLineArgs& a, int64_t k) {
  return a.x[k * a.step] * (a.scale ? a.scale[k * a.scale_step] : 1.f);
}
float value(const SplitPanelArgs& a, int64_t k, int c) {
  return a.x[k * a.next + c * a.col] * (a.scale ? a.scale[k * a.scale_step] : 1.f);
}

void measure_line(const SplitLineArgs& a, SplitLines& out, int line) {
  int32_t top = 0;
  float lanes[kRowLanes] = {}, squares = 0;
  for (int64_t k = 0; k < a.k; ++k) {
    const float x = value(a, k);
    top = std::max(top, magnitude_bits(x)), lanes[k % kRowLanes] += x * x;
  }
  for (const float l : lanes) squares += l;
  out.top[line] = top, out.squares[line] = squares;
}

void measure_panel(const SplitPanelArgs& a, SplitLines& out) {
  float lanes[kColumnLanes][kPanel] = {};
  for (int64_t k = 0; k < a.k; ++k)
    for (int c = 0; c < a.cols; ++c) {
      const float x = value(a, k, c);
      out.top[c] = std::max(out.top[c], magnitude_bits(x)), lanes[k % kColumnLanes][c] += x * x;
    }
  for (int c = 0; c < a.cols; ++c)
    for (const auto& lane : lanes) out.squares[c] += lane[c];
}

void split_line(const SplitLineArgs& a, SplitLines& out, int line) {
  int64_t sum = 0;
  for (int64_t k = 0; k < a.k; ++k) {
    const int32_t q = int32_t(std::rint(value(a, k) * out.v[line]));
    sum += q;
    for (int d = 0; d < a.digits; ++d) a.plane[d][k] = digit_of(q, a.digits, d, false);
  }
  out.sum[line] = double(sum);
}

void split_panel(const SplitPanelArgs& a, SplitLines& out) {
  auto* const bytes = reinterpret_cast<uint8_t*>(a.words);
  for (int64_t k = 0; k < a.k; ++k)
    for (int c = 0; c < a.cols; ++c) {
      const int32_t q = int32_t(std::rint(value(a, k, c) * out.v[c]));
      out.sum[c] += q;
      for (int d = 0; d < a.digits; ++d)
        bytes[4 * (d * a.plane + k / 4 * a.width + c) + k % 4] = digit_of(q, a.digits, d, true);
    }
}

void digit_sums(const DigitSums& a) {
  constexpr int kPlane = kMaxRows * kPanel;
  for (int r = 0; r < a.rows; ++r)
    for (int j = 0; j < a.cols; ++j) {
      const int32_t* const acc = a.acc + r * kPanel + j;
      double sum = 0, unit = 1;
      for (int d = 0; d < a.digits; ++d, unit *= 256) sum += unit * double(acc[d * kPlane]);
      sum += a.row_unit * a.row->add[r] + a.col_unit * a.col->add[j];
      const double y = a.row->factor[r] * a.col->factor[j] * sum;
      a.y[r * a.ldy + j] = float(a.offset ? y + a.row->offset[r] * a.col->offset[j] : y);
    }
}

/// v of measured lines; returns the digits of their tile, four when any of them is heavy.
int choose_scales(SplitLines& s, int lines, int64_t k, int digits, bool heavy_allowed) {
  int used = digits;
  for (int i = 0; i < lines; ++i) {
    const LineScale line = line_scale(s.top[i], s.squares[i], k, digits, heavy_allowed);
    s.v[i] = line.v, used = std::max(used, line.digits);
  }
  return used;
}

/// What is subtracted from codes: unsigned bytes in A, signed ones in B.
int packed_zero(const GemmOperand& codes, bool in_b) {
  return in_b ? (codes.hi > 127 ? 128 : 0) : std::min(codes.lo, 0);
}
int largest_code(const GemmOperand& codes, int zero) {
  return std::max(std::abs(codes.lo - zero), std::abs(codes.hi - zero));
}

/// Σ_k x[c·line + k·step] (·e[k·e_step]) for every line c: `D` of gemm_digits.h without α.
void line_dots(const float* x, int64_t line, int64_t step, int lines, int64_t k, const float* e,
               int64_t e_step, double* out) {
  double sum[kOffsetLanes][kPanel] = {};
  const auto along = [&](auto weight) {  // lanes are neighbours in memory
    for (int c = 0; c < lines; ++c) {
      const float* const from = x + c * line;
      double lane[kOffsetLanes] = {};
      int64_t i = 0;
      for (; i + kOffsetLanes <= k; i += kOffsetLanes)
        for (int j = 0; j < kOffsetLanes; ++j) lane[j] += double(from[i + j]) * weight(i + j);
      for (int j = 0; i + j < k; ++j) lane[j] += double(from[i + j]) * weight(i + j);
      for (int j = 0; j < kOffsetLanes; ++j) sum[j][c] = lane[j];
    }
  };
  const auto across = [&](auto weight) {
    for (int64_t i = 0; i < k; ++i) {
      const float* const from = x + i * step;
      double* const to = sum[i % kOffsetLanes];
      const double w = weight(i);
      if (line == 1)
        for (int c = 0; c < lines; ++c) to[c] += double(from[c]) * w;
      else
        for (int c = 0; c < lines; ++c) to[c] += double(from[c * line]) * w;
    }
  };
  const auto run = [&](auto weight) { step == 1 ? along(weight) : across(weight); };
  if (!e)
    run([](int64_t) { return 1.0; });
  else if (e_step == 1)
    run([e](int64_t i) { return double(e[i]); });
  else
    run([e, e_step](int64_t i) { return double(e[i * e_step]); });
  for (int w = kOffsetLanes / 2; w > 0; w /= 2)
    for (int i = 0; i < w; ++i)
      for (int c = 0; c < lines; ++c) sum[i][c] += sum[i + w][c];
  std::copy_n(sum[0], lines, out);
}

class DigitEngine {
 public:
  DigitEngine(const GemmArgs& g, IntKernel kernel)
      : g_(g),
        kernel_(kernel),
        digits_(digit_kernel(current_isa())),
        floats_in_a_(!is_codes(g.a)),
        codes_(floats_in_a_ ? g.b : g.a),
        zero_(packed_zero(codes_, floats_in_a_)),
        max_code_(largest_code(codes_, zero_)),
        tile_bytes_(code_tile_bytes(kernel, g.k)),
        panel_data_(size_t(panel_words(g.k)) * kPanel * 4),
        heavy_allowed_(digit_plan(g).heavy_allowed) {}

  Blocking blocking() const {
    const int64_t batches = g_.batch[0] * g_.batch[1] * g_.batch[2];
    return {batches,
            g_.m,
            g_.n,
            kernel_.mr,
            1,
            a_planes() * tile_bytes_ + sizeof(DigitLines),
            b_planes() * panel_data_ + sizeof(DigitLines) + range_bytes(),
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
    const DigitLines& rs = *reinterpret_cast<const DigitLines*>(a + a_planes() * tile_bytes_);
    const DigitLines& cs = *reinterpret_cast<const DigitLines*>(b + b_planes() * panel_data_);
    const DigitLines& floats = floats_in_a_ ? rs : cs;
    for (int d = 0; d < floats.digits; ++d) {
      IntTile t{rows,
                cols,
                ceil_div(g_.k, 4),
                reinterpret_cast<const uint32_t*>(a + (floats_in_a_ ? size_t(d) * tile_bytes_ : 0)),
                packed_row(kernel_, g_.k),
                reinterpret_cast<const uint32_t*>(b + (floats_in_a_ ? 0 : size_t(d) * panel_data_)),
                panel_width(cols),
                words_in_16_bits(max_code_, floats_in_a_ ? 255 : 128),
                IntOut::s32,
                0,
                &no_row,
                &no_col,
                acc[d],
                kPanel,
                true};
      if (d == 3 && !floats_in_a_)
        t.ranges = reinterpret_cast<const WordRange*>(&cs + 1), t.range_count = cs.range_count;
      kernel_.run(t);
    }
    DigitSums sums{acc[0], rows, cols,    floats.digits, codes_.offset != nullptr, &rs, &cs,
                   1,      1,    nullptr, kPanel};
    (floats_in_a_ ? sums.col_unit : sums.row_unit) = digit_bias(floats.digits);
    float* const c = at.c + row * g_.c_row + col * g_.c_col;
    if (g_.c_col == 1) {
      sums.y = c, sums.ldy = g_.c_row;
      return digits_.sums(sums);
    }
    alignas(64) float y[kMaxRows * kPanel];
    sums.y = y;
    digits_.sums(sums);
    for (int r = 0; r < rows; ++r)
      for (int j = 0; j < cols; ++j) c[r * g_.c_row + j * g_.c_col] = y[r * kPanel + j];
  }

 private:
  size_t max_digits() const { return size_t(heavy_allowed_ ? kMaxDigits : g_.digits); }
  size_t a_planes() const { return floats_in_a_ ? max_digits() : 1; }
  size_t b_planes() const { return floats_in_a_ ? 1 : max_digits(); }
  size_t range_bytes() const {
    return round_up((size_t(panel_words(g_.k)) / 32 + 1) * sizeof(WordRange), 64);
  }

  /// What a packed code takes from the sum of its digits' products: q was made unsigned, then in B the bytes
  /// of three digits, in A that of the fourth, moved by 128.
  double digit_bias(int digits) const {
    if (!floats_in_a_) return 128.0 * (digits == 2 ? 0x0101 : 0x010101) - double(digit_zero(digits));
    return -double(digit_zero(digits)) - (digits == kMaxDigits ? 0x1p31 : 0);
  }

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
      out.add[i] = double(sums[i] - g_.k * zero_);
      out.factor[i] =
          scale_along_k() ? 1 : double(codes_.scale[at.index.offset(ss.batch) + (line + i) * ss.row]);
      if (codes_.offset)
        out.offset[i] = os.k ? 1 : double(codes_.offset[at.index.offset(os.batch) + (line + i) * os.row]);
    }
  }

  /// `x`: the first of `lines` lines of floats, `line` and `step` between lines and between two k.
  void float_lines(const Place& at, const SplitLines& split, const float* x, int64_t line, int64_t step,
                   int lines, DigitLines& out) const {
    const auto& os = codes_.offset_stride;
    const bool own_sum = sums_floats(codes_);
    double dots[kPanel];
    if (own_sum)
      line_dots(x, line, step, lines, g_.k, os.k ? codes_.offset + at.index.offset(os.batch) : nullptr, os.k,
                dots);
    for (int i = 0; i < lines; ++i) {
      out.factor[i] = g_.alpha * unit_of(split.top[i], split.v[i]);
      out.add[i] = code_shift() * split.sum[i];
      out.offset[i] = own_sum ? g_.alpha * dots[i] : out.factor[i] * split.sum[i];
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
        staged ? thread_scratch(Scratch::stage, max_digits() * kernel_.mr * line + kPackSlack) : dst);
    const size_t plane = staged ? kernel_.mr * line : tile_bytes_;
    SplitLines split;
    const float* const first = static_cast<const float*>(g_.a.data) + at.a + row * g_.a.stride.row;
    SplitLineArgs args{first, g_.a.stride.k, g_.k, scale_of_k(at), codes_.scale_stride.k, 0, {}};
    const auto each_line = [&](auto f) {
      SplitLineArgs line_args = args;
      for (int r = 0; r < rows; ++r, line_args.x += g_.a.stride.row) f(line_args, r);
    };
    each_line([&](const SplitLineArgs& x, int r) { digits_.measure_line(x, split, r); });
    out.digits = args.digits = choose_scales(split, rows, g_.k, g_.digits, heavy_allowed_);
    each_line([&](SplitLineArgs& x, int r) {
      for (int d = 0; d < x.digits; ++d) {
        x.plane[d] = planes + size_t(d) * plane + size_t(r) * line;
        std::fill(x.plane[d] + g_.k, x.plane[d] + line, uint8_t(0));
      }
      digits_.line(x, split, r);
    });
    float_lines(at, split, first, g_.a.stride.row, g_.a.stride.k, rows, out);
    for (int d = 0; staged && d < out.digits; ++d)
      pack_codes(planes + size_t(d) * plane, int64_t(line), 1, rows, g_.k, 0,
                 reinterpret_cast<uint32_t*>(dst + size_t(d) * tile_bytes_), rows);
  }

  /// Floats as B: planes of words of four k.
  void split_columns(const Place& at, int64_t col, int cols, char* dst, DigitLines& out) const {
    SplitLines split;
    SplitPanelArgs args{static_cast<const float*>(g_.b.data) + at.b + col * g_.b.stride.row,
                        g_.b.stride.row,
                        g_.b.stride.k,
                        g_.k,
                        scale_of_k(at),
                        codes_.scale_stride.k,
                        cols,
                        0,
                        panel_width(cols),
                        reinterpret_cast<uint32_t*>(dst),
                        int64_t(panel_data_ / 4)};
    digits_.measure_panel(args, split);
    out.digits = args.digits = choose_scales(split, cols, g_.k, g_.digits, heavy_allowed_);
    digits_.panel(args, split);
    float_lines(at, split, args.x, args.col, args.next, cols, out);
    if (out.digits == kMaxDigits)
      out.range_count =
          fourth_digits(args.words + 3 * args.plane, args.width, reinterpret_cast<WordRange*>(&out + 1));
  }

  /// Where the fourth digit is not zero throughout: often a few tokens of every image.
  int fourth_digits(const uint32_t* plane, int width, WordRange* ranges) const {
    int count = 0;
    const int64_t words = ceil_div(g_.k, 4);
    for (int64_t w = 0; w < words; w += 16) {
      const int64_t end = std::min(words, w + 16);
      uint32_t any = 0;
      for (int64_t i = w * width; i < end * width; ++i) any |= plane[i];
      if (!any) continue;
      if (count && ranges[count - 1].end == w)
        ranges[count - 1].end = int32_t(end);
      else
        ranges[count++] = {int32_t(w), int32_t(end)};
    }
    return count;
  }

  const GemmArgs& g_;
  const IntKernel kernel_;
  const DigitKernel digits_;
  const bool floats_in_a_;
  const GemmOperand& codes_;
  const int zero_, max_code_;  // packed code = code − zero
  const size_t tile_bytes_, panel_data_;
  const bool heavy_allowed_;  // sums with a fourth digit stay below 2^53
};

}  // namespace

DigitKernel digit_kernel(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::avx512)
    return {measure_line_avx512, measure_panel_avx512, split_line_avx512, split_panel_avx512,
            digit_sums_avx512};
  if (isa == Isa::avx2)
    return {measure_line_avx2, measure_panel_avx2, split_line_avx2, split_panel_avx2, digit_sums_avx2};
#endif
  (void)isa;
  return {measure_line, measure_panel, split_line, split_panel, digit_sums};
}

bool digits_apply(const GemmArgs& g) {
  const bool a = is_codes(g.a), b = is_codes(g.b);
  if (a == b || (a ? g.b : g.a).dtype != DType::f32 || g.c_dtype != DType::f32 || g.bias || g.beta != 0)
    return false;
  const GemmOperand& codes = a ? g.a : g.b;
  const double largest = std::max(codes.hi - std::min(codes.lo, 0), 128);
  return 255.0 * largest * double(g.k) <= std::numeric_limits<int32_t>::max();
}

DigitPlan digit_plan(const GemmArgs& g) {
  const GemmOperand &floats = is_codes(g.a) ? g.b : g.a, &codes = is_codes(g.a) ? g.a : g.b;
  const bool rows = floats.stride.k == 1 || floats.stride.row != 1;
  const int largest = largest_code(codes, packed_zero(codes, rows));
  return {rows, g.digits == 3 && 255.0 * largest * double(g.k) < 0x1p29};
}

namespace {

void digit_product(GemmArgs g) {
  // Rows are split as A, columns as B.
  if (digit_plan(g).floats_as_rows == is_codes(g.a)) {
    std::swap(g.a, g.b);
    std::swap(g.m, g.n);
    std::swap(g.c_row, g.c_col);
  }
  fold_batches(g);
  const DigitEngine e(g, gemm_kernel_int8(current_isa()));
  BlockedProduct(e, e.blocking()).run();
}

/// `from`, packed, is added to C.
void add_packed(const GemmArgs& g, const void* from) {
  const auto view = [&g](void* data, int64_t row, int64_t col) {
    return View{data, DType::f32, 2, {g.m, g.n}, {row, col}};
  };
  accumulate({view(g.c, g.c_row, g.c_col), view(const_cast<void*>(from), g.n, 1)}, Device{});
}

void digit_products_cpu(const DigitProducts& all, Stream) {
  for (int i = 0; i < all.count; ++i) {
    GemmArgs g = all.product[i];
    if (g.beta == 0) {
      digit_product(g);
      continue;
    }
    g.beta = 0, g.c = g.work, g.c_row = g.n, g.c_col = 1;
    digit_product(g);
    add_packed(all.product[i], g.work);
  }
  for (int i = 0; i < all.sums; ++i) {
    const ColumnSumArgs s = all.sum[i];
    cpu::columns(
        s.rows, s.cols, [s](int64_t m, int64_t n) { return s.x[m * s.cols + n]; }, s.out);
  }
}

}  // namespace

KernelSlot<DigitProducts> digit_products{"gemm.digits", digit_products_cpu};

}  // namespace lowbit::detail
