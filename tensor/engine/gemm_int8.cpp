#include "tensor/engine/gemm_int8.h"

#include <cmath>
#include <limits>
#include <utility>

#include "tensor/engine/coded_terms.h"
#include "tensor/engine/gemm_pack.h"

namespace lowbit {

namespace {

using detail::Blocking;
using detail::CodedPlan;
using detail::ColInfo;
using detail::ColTerms;
using detail::IntOut;
using detail::kPanel;
using detail::Packing;
using detail::RowInfo;
using detail::RowTerms;

Packing packing(const GemmOperand& o, bool unsigned_bytes, bool plain) {
  const int zero = unsigned_bytes ? std::min(o.lo, 0) : o.hi > 127 ? 128 : 0;
  const double shift = plain ? 0 : o.shift;
  const int factor = std::rint(shift) == shift ? 1 : std::rint(2 * shift) == 2 * shift ? 2 : 0;
  return {zero, zero + shift, std::max(std::abs(o.lo - zero), std::abs(o.hi - zero)),
          std::max(std::abs(o.lo + shift), std::abs(o.hi + shift)), factor};
}

constexpr double kInt32Max = std::numeric_limits<int32_t>::max();

bool power_of_two(double x) {
  int e;
  return std::frexp(x, &e) == 0.5;
}

/// Which epilogue, a function of the arguments alone.
IntOut choose_output(const CodedGemmArgs& g, const Packing& a, const Packing& b) {
  if (g.c_dtype == DType::i32) return IntOut::s32;
  const bool both_scales_vary = g.a.scale_stride.row != 0 && g.b.scale_stride.row != 0;
  const bool single = !g.a.offset && !g.b.offset && a.factor && b.factor &&
                      double(g.k) * a.max_value * b.max_value * a.factor * b.factor <= kInt32Max &&
                      (!both_scales_vary || power_of_two(g.alpha));
  return single ? IntOut::f32 : IntOut::f64;
}

}  // namespace

detail::CodedPlan::CodedPlan(const CodedGemmArgs& g)
    : a(packing(g.a, true, g.c_dtype == DType::i32)),
      b(packing(g.b, false, g.c_dtype == DType::i32)),
      out(choose_output(g, a, b)),
      factor(out == IntOut::f32 ? a.factor * b.factor : 1) {}

namespace {

int64_t words(int64_t k) { return ceil_div(k, 4); }

/// A packed panel of B is followed by Σ_k of its packed values, int32 [kPanel].
size_t panel_data_bytes(int64_t k) { return size_t(detail::panel_words(k)) * kPanel * 4; }
size_t panel_bytes(int64_t k) { return panel_data_bytes(k) + kPanel * 4; }

void pack_panel(const GemmOperand& b, const Packing& p, int64_t at, int64_t col, int cols, int64_t k,
                bool with_sums, char* dst) {
  const auto* src = static_cast<const uint8_t*>(b.data) + at + col * b.stride.row;
  detail::pack_codes(src, b.stride.row, b.stride.k, cols, k, uint8_t(p.zero),
                     reinterpret_cast<uint32_t*>(dst), detail::panel_width(cols));
  auto* sums = reinterpret_cast<int32_t*>(dst + panel_data_bytes(k));
  if (!with_sums) return void(std::fill_n(sums, cols, 0));
  detail::sum_codes(src, b.dtype == DType::i8, b.stride.row, b.stride.k, cols, k, sums);
  for (int c = 0; c < cols; ++c) sums[c] -= int32_t(k * p.zero);
}

/// Σ_k weight_k · (packed[k] + shift) for every line, k in increasing order; `word` and `line` are the bytes
/// between words of four k and between lines.
template <class Byte>
void weighted_sums(const char* packed, int64_t word, int64_t line, int lines, int64_t k, double shift,
                   const float* weight, int64_t step, double* out) {
  std::fill_n(out, lines, 0.0);
  const auto run = [&](auto adjacent) {
    for (int64_t i = 0; i < k; ++i) {
      const auto* const bytes = reinterpret_cast<const Byte*>(packed) + i / 4 * word + i % 4;
      const double w = double(weight[i * step]);
      for (int r = 0; r < lines; ++r) out[r] += w * (double(bytes[adjacent ? 4 * r : r * line]) + shift);
    }
  };
  line == 4 ? run(std::true_type{}) : run(std::false_type{});
}

class CodedEngine {
 public:
  CodedEngine(const CodedGemmArgs& g, detail::IntKernel kernel)
      : g_(g),
        kernel_(kernel),
        plan_(g),
        in_place_(kernel.in_place && !weighted_rows() && g.a.stride.k == 1 && plan_.a.zero == 0 && g.k >= 4 &&
                  g.a.stride.row >= g.k && g.a.stride.row % 2048 != 0 &&
                  (!kernel.by_rows || (g.k % 64 == 0 && g.k <= 1024))),
        tile_bytes_(detail::code_tile_bytes(kernel, g.k)) {}

  Blocking blocking() const {
    const int64_t batches = g_.batch[0] * g_.batch[1] * g_.batch[2];
    return {batches,
            g_.m,
            g_.n,
            kernel_.mr,
            1,
            tile_bytes_ + detail::round_up(sizeof(RowInfo), 64),
            panel_bytes(g_.k),
            detail::round_up(sizeof(ColInfo), 64),
            double(batches) * g_.m * g_.n * g_.k / 4,
            g_.quantize != nullptr,
            false,
            kernel_.by_rows};
  }
  struct Place {
    BatchIndex index;
    int64_t a, b, c;
  };
  Place place(int64_t batch) const {
    const BatchIndex i = BatchIndex::of(g_, batch);
    return {i, i.offset(g_.a.stride.batch), i.offset(g_.b.stride.batch), i.offset(g_.c_batch)};
  }
  const char* prepacked() const { return static_cast<const char*>(g_.packed_b); }
  detail::IntSession session() const { return detail::IntSession(kernel_); }
  bool same_b(int64_t x, int64_t y) const { return detail::same_b(g_, x, y); }

  void pack_b(const Place& at, int64_t, int64_t col, int cols, char* dst) const {
    pack_panel(g_.b, plan_.b, at.b, col, cols, g_.k, plan_.a.shift != 0 || plan_.out == IntOut::f64, dst);
  }

  void pack_a(const Place& at, int64_t, int64_t row, int rows, char* dst) const {
    const auto* src = static_cast<const uint8_t*>(g_.a.data) + at.a + row * g_.a.stride.row;
    if (g_.quantize) quantize_rows(at.index, row, rows, const_cast<uint8_t*>(src));
    if (!reads_in_place(row, rows))
      detail::pack_code_tile(kernel_, src, g_.a.stride.row, g_.a.stride.k, rows, g_.k, uint8_t(plan_.a.zero),
                             dst);
    auto& info = *reinterpret_cast<RowInfo*>(dst + tile_bytes_);
    int32_t sums[detail::kMaxRows] = {};
    if (plan_.b.shift != 0 || plan_.out == IntOut::f64) {
      detail::sum_codes(src, g_.a.dtype == DType::i8, g_.a.stride.row, g_.a.stride.k, rows, g_.k, sums);
      for (int r = 0; r < rows; ++r) sums[r] -= int32_t(g_.k * plan_.a.zero);
    }
    row_info(at.index, row, rows, sums, dst, info);
  }

  void prepare(const Place& at, int64_t p0, int64_t p1, const char* packed, char* columns) const {
    for (int64_t p = p0; p < p1; ++p)
      column_info(
          at.index, p * kPanel, int(std::min<int64_t>(kPanel, g_.n - p * kPanel)),
          packed + size_t(p) * panel_bytes(g_.k),
          *reinterpret_cast<ColInfo*>(columns + size_t(p - p0) * detail::round_up(sizeof(ColInfo), 64)));
  }

  void tile(const Place& at, int64_t, int64_t row, int rows, int64_t col, int cols, const char* a,
            const char* b, const char* columns) const {
    const int64_t c = at.c + row * g_.c_row + col * g_.c_col;
    const bool in_place = reads_in_place(row, rows);
    const char* const codes =
        in_place ? static_cast<const char*>(g_.a.data) + at.a + row * g_.a.stride.row : a;
    detail::IntTile t{rows,
                      cols,
                      words(g_.k),
                      reinterpret_cast<const uint32_t*>(codes),
                      in_place ? g_.a.stride.row : detail::packed_row(kernel_, g_.k),
                      reinterpret_cast<const uint32_t*>(b),
                      detail::panel_width(cols),
                      detail::words_in_16_bits(plan_.a.max_packed, plan_.b.max_packed),
                      plan_.out,
                      plan_.factor / 2,  // 1, 2, 4 → 0, 1, 2
                      reinterpret_cast<const RowInfo*>(a + tile_bytes_),
                      reinterpret_cast<const ColInfo*>(columns),
                      static_cast<uint32_t*>(g_.c) + c,
                      g_.c_row};
    if (g_.c_col == 1) return kernel_.run(t);
    alignas(64) uint32_t buffer[detail::kMaxRows * kPanel];  // C without a contiguous dimension
    auto* const out = static_cast<uint32_t*>(std::exchange(t.c, buffer));
    t.ldc = kPanel;
    kernel_.run(t);
    if (kernel_.flush) kernel_.flush();
    for (int r = 0; r < rows; ++r)
      for (int j = 0; j < cols; ++j) out[r * g_.c_row + j * g_.c_col] = buffer[r * kPanel + j];
  }

 private:
  /// Σ_k e_k·X̂ of the packed rows enters the result.
  bool weighted_rows() const { return plan_.out == IntOut::f64 && g_.b.offset && g_.b.offset_stride.k != 0; }

  /// A kernel reads whole tiles, or whole words: what lies behind the last row may not be ours.
  bool reads_in_place(int64_t row, int rows) const {
    return in_place_ && (kernel_.by_rows ? rows == kernel_.mr : g_.k % 4 == 0 || row + rows < g_.m);
  }

  void quantize_rows(const BatchIndex& i, int64_t row, int rows, uint8_t* codes) const {
    const auto& xs = g_.quantize_stride;
    const auto& a = g_.a;
    for (int r = 0; r < rows; ++r)
      quantize_line(g_.quantize + i.offset(xs.batch) + (row + r) * xs.row, xs.k, g_.k,
                    a.scale[i.offset(a.scale_stride.batch) + (row + r) * a.scale_stride.row],
                    a.offset ? a.offset + i.offset(a.offset_stride.batch) : nullptr, a.offset_stride.k,
                    float(a.lo), float(a.hi), codes + r * a.stride.row, a.stride.k);
  }

  void row_info(const BatchIndex& i, int64_t row, int rows, const int32_t* sums, const char* packed,
                RowInfo& info) const {
    if (plan_.out != IntOut::f64 && g_.a.scale_stride.row == 0) {
      const RowTerms t = detail::row_terms(g_, plan_, i, row, 0, 0, {});
      std::fill_n(info.scale, detail::kMaxRows, t.scale);
      for (int r = 0; r < detail::kMaxRows; ++r)
        info.correction[r] = detail::shift_correction(plan_.b.shift, plan_.factor, sums[r]);
      return;
    }
    double weighted[detail::kMaxRows] = {};
    detail::OffsetSums offsets{};
    if (plan_.out == IntOut::f64) {
      offsets = detail::offset_sums(g_, i);
      const float* const e = detail::batch_offsets(g_.b, i);
      if (weighted_rows())
        weighted_sums<uint8_t>(packed, kernel_.by_rows ? 4 : 4 * rows,
                               kernel_.by_rows ? detail::panel_words(g_.k) * 4 : 4, rows, g_.k, plan_.a.shift,
                               e, g_.b.offset_stride.k, weighted);
    }
    for (int r = 0; r < rows; ++r) {
      const RowTerms t = detail::row_terms(g_, plan_, i, row + r, sums[r], weighted[r], offsets);
      info.correction[r] = t.correction, info.scale[r] = t.scale;
      info.sum[r] = t.sum, info.a[r] = t.a, info.z[r] = t.z, info.q[r] = t.q;
    }
  }

  void column_info(const BatchIndex& i, int64_t col, int cols, const char* packed, ColInfo& info) const {
    const auto* sums = reinterpret_cast<const int32_t*>(packed + panel_data_bytes(g_.k));
    if (plan_.out != IntOut::f64 && g_.b.scale_stride.row == 0) {
      const ColTerms t = detail::col_terms(g_, plan_, i, col, 0, 0);
      std::fill_n(info.scale, kPanel, t.scale);
      for (int c = 0; c < cols; ++c)
        info.correction[c] = int32_t(uint32_t(t.correction) + uint32_t(detail::shift_correction(
                                                                  plan_.a.shift, plan_.factor, sums[c])));
      std::fill(info.correction + cols, info.correction + kPanel, 0);
      std::fill_n(info.bias, kPanel, 0.0f);
      if (g_.bias) std::copy_n(static_cast<const float*>(g_.bias) + col, cols, info.bias);
      return;
    }
    double weighted[kPanel] = {};
    const float* const b = detail::batch_offsets(g_.a, i);
    if (const int64_t step = g_.a.offset_stride.k; b && step)
      weighted_sums<int8_t>(packed, 4 * detail::panel_width(cols), 4, cols, g_.k, plan_.b.shift, b, step,
                            weighted);
    info = ColInfo{};
    for (int c = 0; c < cols; ++c) {
      const ColTerms t = detail::col_terms(g_, plan_, i, col + c, sums[c], weighted[c]);
      info.correction[c] = t.correction, info.scale[c] = t.scale, info.bias[c] = t.bias;
      info.sum[c] = t.sum, info.w[c] = t.w, info.u[c] = t.u, info.e[c] = t.e;
    }
  }

  const CodedGemmArgs& g_;
  const detail::IntKernel kernel_;
  const CodedPlan plan_;
  const bool in_place_;  // tiles of A are the codes themselves
  const size_t tile_bytes_;
};

void coded_gemm_cpu(const CodedGemmArgs& args) {
  CodedGemmArgs g = args;
  detail::fold_batches(g, g.quantize ? &g.quantize_stride : nullptr);
  const CodedEngine e(g, detail::gemm_kernel_int8(current_isa()));
  detail::BlockedProduct(e, e.blocking()).run();
}

template <class Code>
void quantize_codes(const float* x, int64_t step, int64_t n, float a, const float* b, int64_t b_step,
                    float lo, float hi, Code* codes, int64_t codes_step) {
  const auto run = [&](auto packed, auto scalar) {
    const float first = b ? b[0] : 0.0f;
    for (int64_t i = 0; i < n; ++i) {
      const float from = scalar ? first : b[i * b_step];
      codes[packed ? i : i * codes_step] =
          Code(detail::quantized_code(x[packed ? i : i * step], from, a, lo, hi));
    }
  };
  const bool packed = step == 1 && codes_step == 1, scalar = !b || b_step == 0;
  if (packed && scalar)
    run(std::true_type{}, std::true_type{});
  else if (scalar)
    run(std::false_type{}, std::true_type{});
  else
    run(std::false_type{}, std::false_type{});
}

}  // namespace

constinit KernelSlot<CodedProducts> coded_products("coded_gemm", [](const CodedProducts& all, Stream) {
  for (int i = 0; i < all.count; ++i) coded_gemm_cpu(all.product[i]);
});

void quantize_line(const float* x, int64_t step, int64_t n, float a, const float* b, int64_t b_step, float lo,
                   float hi, void* codes, int64_t codes_step) {
  // a code's byte is the same for u8 and i8
  quantize_codes(x, step, n, a, b, b_step, lo, hi, static_cast<uint8_t*>(codes), codes_step);
}

namespace {

void check_bound(const char* op, const CodedGemmArgs& g) {
  const CodedPlan p(g);
  const double term =
      p.out == IntOut::f64 ? double(p.a.max_packed) * p.b.max_packed : p.a.max_value * p.b.max_value;
  LOWBIT_CHECK(double(g.k) * term <= kInt32Max, value, op, "K · max|a| · max|b| must be at most ",
               int64_t(kInt32Max), " (got K = ", g.k, ", codes in [", g.a.lo, ", ", g.a.hi, "] and [", g.b.lo,
               ", ", g.b.hi, "]); split K");
}

void check_codes(const char* op, const GemmInput& x) {
  x.check(op);
  LOWBIT_CHECK(x.values().dtype() == DType::u8 || x.values().dtype() == DType::i8, dtype, op,
               "operands must be u8 or i8 codes (got ", x.str(), ")");
}

/// Bounds a tensor of codes cannot leave.
void narrow_bounds(GemmOperand& o, const GemmInput& x) {
  const bool is_signed = o.dtype == DType::i8;
  o.lo = std::max(x.coded() ? o.lo : -128, is_signed ? -128 : 0);
  o.hi = std::min(x.coded() ? o.hi : 255, is_signed ? 127 : 255);
}

/// Checks and operands common to both products. B is [..., n, k].
CodedGemmArgs make_args(const char* op, Tensor& out, const GemmInput& a, const GemmInput& b, DType t,
                        const Tensor& bias = {}) {
  check_codes(op, a), check_codes(op, b);
  LOWBIT_CHECK(a.cols() == b.cols(), shape, op, "a [..., M, K] and b [..., N, K] must have one K (got ",
               a.str(), " and ", b.str(), ")");
  CodedGemmArgs g;
  detail::set_product(op, g, out, t, a, b.t(), bias);
  narrow_bounds(g.a, a), narrow_bounds(g.b, b);
  return g;
}

void set_quantize(CodedGemmArgs& g, const GemmInput& a, const Tensor& x) {
  constexpr const char* op = "coded_gemm";
  LOWBIT_CHECK(
      x.shape() == a.values().shape() && x.dtype() == DType::f32 && x.device() == a.values().device(), shape,
      op, "values to quantize must be f32 of the shape of the codes (got ", x.str(), " for ", a.str(), ")");
  LOWBIT_CHECK(g.a.shift == 0, value, op, "fused quantization needs codes without shift (got ", g.a.shift,
               ")");
  for (int d = 0; d < kMaxBatchDims; ++d)
    LOWBIT_CHECK(g.batch[d] == 1 || g.a.stride.batch[d] != 0, shape, op,
                 "codes to be written must not be broadcast (got ", a.str(), ")");
  const GemmInput values(x);
  const GemmOperand o = (a.transposed() ? values.t() : values).operand(kMaxBatchDims, true);
  g.quantize = static_cast<const float*>(o.data);
  g.quantize_stride = o.stride;
  Tensor codes = a.values();
  codes.mutable_view();  // counts the write
}

}  // namespace

CodedGemmArgs coded_gemm_args(Tensor& out, const GemmInput& a, const GemmInput& b, const Tensor& bias,
                              double alpha) {
  constexpr const char* op = "coded_gemm";
  LOWBIT_CHECK(a.coded() && b.coded(), dtype, op, "operands must be Coded (got ", a.str(), " and ", b.str(),
               ")");
  CodedGemmArgs g = make_args(op, out, a, b, DType::f32, bias);
  LOWBIT_CHECK(coded_gemm_supported(a, b), value, op,
               "a scale along the contracted dimension does not factor out (got ", a.str(), " and ", b.str(),
               "); dequantize and use gemm");
  LOWBIT_CHECK(g.a.offset_stride.row == 0, value, op, "an offset of a must not vary along M (got ", a.str(),
               ")");
  g.alpha = alpha;
  check_bound(op, g);
  return g;
}

namespace {

void coded_product(Tensor& out, const GemmInput& a, const GemmInput& b, const void* packed,
                   const Tensor& bias, double alpha, const Tensor& quantize) {
  CodedGemmArgs g = coded_gemm_args(out, a, b, bias, alpha);
  g.packed_b = packed;
  if (quantize.defined()) set_quantize(g, a, quantize);
  coded_products({1, {g}}, out.device());
}

}  // namespace

bool coded_gemm_supported(const GemmInput& a, const GemmInput& b) {
  const auto along_k = [](const GemmInput& x) { return x.operand(kMaxBatchDims, true).scale_stride.k != 0; };
  return !along_k(a) && !along_k(b);
}

PackedCodes pack_b(const Coded& b) {
  constexpr const char* op = "pack_b";
  const GemmInput input(b);
  check_codes(op, input);
  LOWBIT_CHECK(b.codes.ndim() == 2, shape, op, "codes must be [N, K] (got ", b.codes.str(), ")");
  LOWBIT_CHECK(!b.codes.device().is_cuda(), device, op, "codes must be on the cpu (got ", b.codes.str(), ")");
  GemmOperand o = input.operand(0, true);
  narrow_bounds(o, input);
  const int64_t n = input.rows(), k = input.cols();
  const Packing p = packing(o, false, false);
  PackedCodes packed;
  packed.coded_ = b;
  packed.data_ = Tensor::empty({ceil_div(n, kPanel) * int64_t(panel_bytes(k))}, DType::u8);
  char* data = reinterpret_cast<char*>(packed.data_.data<uint8_t>());
  parallel_for(ceil_div(n, kPanel), std::max<int64_t>(1, (1 << 15) / (kPanel * std::max<int64_t>(k, 1))),
               [&](int64_t p0, int64_t p1) {
                 for (int64_t i = p0; i < p1; ++i)
                   pack_panel(o, p, 0, i * kPanel, int(std::min<int64_t>(kPanel, n - i * kPanel)), k, true,
                              data + size_t(i) * panel_bytes(k));
               });
  return packed;
}

void gemm_int8(Tensor& out, const GemmInput& a, const GemmInput& b) {
  const CodedGemmArgs g = make_args("gemm_int8", out, a, b, DType::i32);
  check_bound("gemm_int8", g);
  coded_products({1, {g}}, out.device());
}

void coded_gemm(Tensor& out, const GemmInput& a, const GemmInput& b, const Tensor& bias, double alpha,
                const Tensor& quantize) {
  coded_product(out, a, b, nullptr, bias, alpha, quantize);
}

void coded_gemm(Tensor& out, const GemmInput& a, const PackedCodes& b, const Tensor& bias, double alpha,
                const Tensor& quantize) {
  LOWBIT_CHECK(b.defined(), value, "coded_gemm", "packed codes must be defined");
  coded_product(out, a, b.coded(), b.data(), bias, alpha, quantize);
}

}  // namespace lowbit
