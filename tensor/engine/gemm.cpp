#include "tensor/engine/gemm.h"

#include <cmath>
#include <numeric>
#include <utility>

#include "tensor/engine/column.h"
#include "tensor/engine/gemm_digits.h"
#include "tensor/engine/gemm_operand.h"
#include "tensor/engine/gemm_pack.h"
#include "tensor/engine/gemm_parts.h"

namespace lowbit {

int64_t gemm_k_block(int64_t k) {
  constexpr int64_t kMaxBlock = 384;
  const int64_t blocks = std::max<int64_t>(1, ceil_div(k, kMaxBlock));
  return std::max<int64_t>(8, ceil_div(ceil_div(k, blocks), 8) * 8);
}

namespace {

using detail::Blocking;
using Strides = GemmOperand::Strides;

/// The product as seen by BlockedProduct, in T.
template <class T>
class FloatEngine {
 public:
  FloatEngine(const GemmArgs& g, detail::FloatKernel<T> kernel)
      : g_(g),
        kernel_(kernel),
        in_place_(kernel.in_place && readable_in_place(g.a)),
        block_(gemm_k_block(g.k)),
        blocks_(std::max<int64_t>(1, ceil_div(g.k, block_))) {}

  Blocking blocking() const {
    const int64_t batches = g_.batch[0] * g_.batch[1] * g_.batch[2];
    const size_t k = size_t(std::min(block_, g_.k));
    return {batches,
            g_.m,
            g_.n,
            kernel_.mr,
            blocks_,
            in_place_ ? 0 : detail::round_up(k * kernel_.mr * sizeof(T) + 32, 64),
            detail::round_up(k * detail::kPanel * sizeof(T) + 32, 64),
            0,
            double(batches) * g_.m * g_.n * g_.k};
  }
  struct Place {
    BatchIndex index;
    int64_t a, b;
    T* c;
  };
  Place place(int64_t batch) const {
    const BatchIndex i = BatchIndex::of(g_, batch);
    return {i, i.offset(g_.a.stride.batch), i.offset(g_.b.stride.batch),
            static_cast<T*>(g_.c) + i.offset(g_.c_batch)};
  }
  const char* prepacked() const { return nullptr; }
  void prepare(const Place&, int64_t, int64_t, const char*, char*) const {}
  struct Session {
    void flush() const {}
  };
  Session session() const { return {}; }
  bool same_b(int64_t x, int64_t y) const { return detail::same_b(g_, x, y); }
  void pack_a(const Place& at, int64_t k_block, int64_t row, int rows, char* dst) const {
    pack(g_.a, at.index, at.a, k_block, row, rows, reinterpret_cast<T*>(dst), rows);
  }
  void pack_b(const Place& at, int64_t k_block, int64_t col, int cols, char* dst) const {
    pack(g_.b, at.index, at.b, k_block, col, cols, reinterpret_cast<T*>(dst), detail::panel_width(cols));
  }

  void tile(const Place& at, int64_t k_block, int64_t row, int rows, int64_t col, int cols, const char* a,
            const char* b, const char*) const {
    const T* source = reinterpret_cast<const T*>(a);
    if (in_place_)
      source = static_cast<const T*>(g_.a.data) + at.a + row * g_.a.stride.row + k_block * block_;
    const T* bias = k_block == blocks_ - 1 && g_.bias ? static_cast<const T*>(g_.bias) + col : nullptr;
    const detail::Tile<T> t{rows,
                            cols,
                            length(k_block),
                            source,
                            in_place_ ? g_.a.stride.row : 1,
                            in_place_ ? 1 : rows,
                            reinterpret_cast<const T*>(b),
                            detail::panel_width(cols),
                            at.c + row * g_.c_row + col * g_.c_col,
                            g_.c_row,
                            T(g_.alpha),
                            k_block == 0 ? T(g_.beta) : T(1),
                            bias};
    if (g_.c_col == 1)
      kernel_.run(t);
    else
      scattered(t);
  }

 private:
  /// C without a contiguous dimension: through a small buffer.
  void scattered(detail::Tile<T> t) const {
    alignas(64) T buffer[detail::kMaxRows * detail::kPanel];
    T* const c = std::exchange(t.c, buffer);
    t.ldc = detail::kPanel;
    const auto each = [&](auto f) {
      for (int r = 0; r < t.rows; ++r)
        for (int j = 0; j < t.cols; ++j) f(buffer[r * detail::kPanel + j], c[r * g_.c_row + j * g_.c_col]);
    };
    if (t.beta != 0) each([](T& in, const T& out) { in = out; });
    kernel_.run(t);
    each([](const T& in, T& out) { out = in; });
  }

  int64_t length(int64_t k_block) const { return std::min(block_, g_.k - k_block * block_); }

  void pack(const GemmOperand& o, const BatchIndex& i, int64_t base, int64_t k_block, int64_t row, int rows,
            T* dst, int ld) const {
    const int64_t k0 = k_block * block_, k = length(k_block);
    const int64_t at = base + row * o.stride.row + k0 * o.stride.k;
    if (o.dtype == dtype_of<T>)
      detail::pack_floats(static_cast<const T*>(o.data) + at, o.stride.row, o.stride.k, rows, k, dst, ld);
    else if constexpr (std::is_same_v<T, float>)
      pack_converted(o, i, at, row, k0, rows, k, dst, ld);
  }

  static void pack_converted(const GemmOperand& o, const BatchIndex& i, int64_t at, int64_t row, int64_t k0,
                             int rows, int64_t k, float* dst, int ld) {
    if (o.dtype == DType::bf16) {
      const bf16* const from = static_cast<const bf16*>(o.data) + at;
      for (int64_t e = 0; e < k; ++e)
        for (int r = 0; r < rows; ++r) dst[e * ld + r] = float(from[r * o.stride.row + e * o.stride.k]);
      return;
    }
    const Strides &s = o.scale_stride, &b = o.offset_stride;
    const auto first = [&](const float* p, const Strides& to) {
      return p ? p + i.offset(to.batch) + row * to.row + k0 * to.k : nullptr;
    };
    detail::pack_code_values(
        {static_cast<const char*>(o.data) + at, o.dtype == DType::i8, o.stride.row, o.stride.k,
         float(o.shift), first(o.scale, s), s.row, s.k, first(o.offset, b), b.row, b.k},
        rows, k, dst, ld);
  }

  /// A row-major A is read in place unless its rows fall on few cache sets (a stride near a multiple of 4
  /// KiB).
  static bool readable_in_place(const GemmOperand& a) {
    const int64_t bytes = a.stride.row * int64_t(sizeof(T));
    return a.dtype == dtype_of<T> && a.stride.k == 1 && a.stride.row > 1 &&
           4096 / std::gcd(bytes, int64_t{4096}) >= 4;
  }

  const GemmArgs& g_;
  const detail::FloatKernel<T> kernel_;
  const bool in_place_;
  const int64_t block_, blocks_;
};

void gemm_cpu(const GemmArgs& args, Stream) {
  GemmArgs g = args;
  if (g.c_row == 1 && g.c_col != 1 && !g.bias) {  // Cᵀ = Bᵀ·Aᵀ: the products commute, the bits stay
    std::swap(g.a, g.b);
    std::swap(g.m, g.n);
    std::swap(g.c_row, g.c_col);
  }
  detail::fold_batches(g);
  if (g.c_dtype == DType::f64) {
    const FloatEngine<double> e(g, detail::gemm_kernel_f64());
    detail::BlockedProduct(e, e.blocking()).run();
  } else {
    const FloatEngine<float> e(g, detail::gemm_kernel_f32(current_isa()));
    detail::BlockedProduct(e, e.blocking()).run();
  }
}

}  // namespace

constinit KernelSlot<GemmArgs> gemm_kernel("gemm", gemm_cpu);

std::string GemmInput::str() const { return values_.str() + (transposed_ ? " transposed" : ""); }

GemmOperand GemmInput::operand(int batch_dims, bool k_last) const {
  GemmOperand o;
  const View v = values_.view();
  o.data = v.data;
  o.dtype = v.dtype;
  const int nd = v.ndim, k_dim = k_last != transposed_ ? nd - 1 : nd - 2, row_dim = 2 * nd - 3 - k_dim;
  const auto place = [&](Strides& s, int dim, int64_t stride) {
    if (dim == k_dim)
      s.k = stride;
    else if (dim == row_dim)
      s.row = stride;
    else if (const int b = kMaxBatchDims - nd + 2 + dim; b >= 0 && b < kMaxBatchDims && v.shape[dim] > 1)
      s.batch[b] = stride;
  };
  LOWBIT_ASSERT(nd - 2 <= batch_dims && batch_dims <= kMaxBatchDims);
  for (int d = 0; d < nd; ++d) place(o.stride, d, v.stride[d]);
  if (!is_coded_) return o;
  o.scale = static_cast<const float*>(coded_.scale.view().data);
  const auto along = [&](Strides& s, const Tensor& t, int dim) {
    place(s, dim, t.stride(-1));
    if (t.ndim() == 2) place(s, nd - 3, t.stride(0));
  };
  if (!coded_.per_tensor()) along(o.scale_stride, coded_.scale, coded_.scale_axis + nd);
  if (coded_.offset.defined()) {
    o.offset = static_cast<const float*>(coded_.offset.view().data);
    if (coded_.offset.numel() > 1) along(o.offset_stride, coded_.offset, nd - 1);
  }
  o.shift = coded_.shift;
  o.lo = coded_.lo;
  o.hi = coded_.hi;
  return o;
}

namespace {

void check_coded(const char* op, const GemmInput& x, const Coded& c) {
  LOWBIT_CHECK(x.values().dtype() == DType::u8 || x.values().dtype() == DType::i8, dtype, op,
               "codes must be u8 or i8 (got ", x.str(), ")");
  const int nd = x.values().ndim();
  const auto fits = [&](const Tensor& t, int64_t extent) {
    return t.ndim() == 1 ? t.numel() == extent : nd >= 3 && t.shape() == Shape{x.values().size(-3), extent};
  };
  LOWBIT_CHECK(
      c.scale.defined() && c.scale.dtype() == DType::f32 && (c.scale.ndim() == 1 || c.scale.ndim() == 2),
      dtype, op, "scale of codes must be f32 [n] or [groups, n] (got ",
      c.scale.defined() ? c.scale.str() : "none", ")");
  if (c.per_tensor()) {
    LOWBIT_CHECK(c.scale.numel() == 1, shape, op, "scale per tensor must hold one value (got ", c.scale.str(),
                 ")");
  } else {
    LOWBIT_CHECK(c.scale_axis < 0 && c.scale_axis >= -nd && fits(c.scale, x.values().size(c.scale_axis)),
                 shape, op, "scale must have the extent of dimension ", c.scale_axis, " (got ", c.scale.str(),
                 " for codes ", x.str(), ")");
  }
  if (c.offset.defined())
    LOWBIT_CHECK(c.offset.dtype() == DType::f32 && (c.offset.ndim() == 1 || c.offset.ndim() == 2) &&
                     (c.offset.numel() == 1 || fits(c.offset, x.values().size(-1))),
                 shape, op, "offset must be f32 with one value or one per entry of the last dimension (got ",
                 c.offset.str(), " for codes ", x.str(), ")");
}

}  // namespace

void GemmInput::check(const char* op) const {
  LOWBIT_CHECK(values_.defined() && values_.ndim() >= 2 && values_.ndim() <= 2 + kMaxBatchDims, shape, op,
               "operands must have 2 to ", 2 + kMaxBatchDims, " dimensions (got ",
               values_.defined() ? str() : "an undefined tensor", ")");
  if (is_coded_) check_coded(op, *this, coded_);
}

Shape gemm_batch_shape(const char* op, const GemmInput& a, const GemmInput& b) {
  const auto leading = [](const Tensor& t) {
    return Shape(std::span<const int64_t>(t.shape().begin(), t.shape().end() - 2));
  };
  return broadcast_shapes(op, leading(a.values()), leading(b.values()));
}

void detail::set_product(const char* op, ProductArgs& g, Tensor& out, DType t, const GemmInput& a,
                         const GemmInput& b, const Tensor& bias) {
  Shape expected = gemm_batch_shape(op, a, b);
  const int batch_dims = expected.ndim();
  expected.append(a.rows());
  expected.append(b.cols());
  LOWBIT_CHECK(out.defined() && out.shape() == expected && out.dtype() == t, shape, op, "output must be ",
               expected.str(), " ", dtype_name(t), " (got ",
               out.defined() ? out.str() : "an undefined tensor", " for ", a.str(), " and ", b.str(), ")");
  LOWBIT_CHECK(!bias.defined() || (bias.dtype() == t && bias.shape() == Shape{b.cols()} && bias.contiguous()),
               shape, op, "bias must be a contiguous ", dtype_name(t), " [", b.cols(), "] (got ",
               bias.defined() ? bias.str() : "", ")");
  const Device d = out.device();
  LOWBIT_CHECK(
      a.values().device() == d && b.values().device() == d && (!bias.defined() || bias.device() == d), device,
      op, "operands and output must be on one device (got ", a.str(), ", ", b.str(), " and ", out.str(), ")");
  g.m = a.rows(), g.n = b.cols(), g.k = a.cols();
  g.a = a.operand(batch_dims, true);
  g.b = b.operand(batch_dims, false);
  const View c = out.mutable_view();
  g.c = c.data, g.c_dtype = t;
  g.c_row = c.stride[batch_dims], g.c_col = c.stride[batch_dims + 1];
  for (int i = 0; i < batch_dims; ++i) {
    g.batch[kMaxBatchDims - batch_dims + i] = c.shape[i];
    g.c_batch[kMaxBatchDims - batch_dims + i] = c.stride[i];
  }
  g.bias = bias.defined() ? bias.view().data : nullptr;
}

namespace {
DType result_type(const GemmInput& x) {
  const DType t = x.values().dtype();
  return x.coded() || t == DType::bf16 ? DType::f32 : t;
}

/// Everything but what the mode decides.
GemmArgs checked_args(Tensor& out, const GemmInput& a, const GemmInput& b, const Tensor& bias) {
  constexpr const char* op = "gemm";
  a.check(op), b.check(op);
  LOWBIT_CHECK(a.cols() == b.rows(), shape, op, "columns of a must equal rows of b (got ", a.str(), " and ",
               b.str(), ")");
  const DType t = result_type(a);
  LOWBIT_CHECK((t == DType::f32 || t == DType::f64) && result_type(b) == t, dtype, op,
               "operands and output must all be f32 or all f64; codes and bf16 need f32 (got ", a.str(),
               " and ", b.str(), ")");
  const bool rounded = t == DType::f32 && out.defined() && out.dtype() == DType::bf16;
  GemmArgs g;
  detail::set_product(op, g, out, rounded ? DType::bf16 : t, a, b, bias);
  return g;
}

/// The products by digits, with the memory that they need.
void run_digits(detail::DigitProducts& all, const GemmMode& mode, Device d) {
  Tensor measured, added, partial[detail::kDigitSums];
  int64_t lines[kProductsTogether] = {}, sum = 0, largest = 0;
  for (int i = 0; i < all.count; ++i) {
    GemmArgs& g = all.product[i];
    g.digits = mode.digits;
    lines[i] = g.batch[0] * g.batch[1] * g.batch[2] * (detail::is_codes(g.a) ? g.n : g.m);
    sum += lines[i];
    if (g.beta != 0) largest = std::max(largest, g.m * g.n);
  }
  if (d.is_cuda()) {
    measured = Tensor::empty({sum * int64_t(sizeof(detail::DigitLine))}, DType::u8, d);
    auto* at = reinterpret_cast<detail::DigitLine*>(measured.data<uint8_t>());
    for (int i = 0; i < all.count; at += lines[i++]) all.product[i].work = at;
    for (int i = 0; i < all.sums; ++i) {
      partial[i] = column_workspace(all.sum[i].rows, all.sum[i].cols, 1, DType::f32, d);
      all.sum[i].work = partial[i].data<float>();
    }
  } else if (largest > 0) {
    added = Tensor::empty({largest}, DType::f32, d);
    for (int i = 0; i < all.count; ++i)
      if (all.product[i].beta != 0) all.product[i].work = added.data<float>();
  }
  detail::digit_products(all, d);
}

/// gemm(); a_sums and summed as in GemmArgs.
void product(Tensor& out, const GemmInput& a, const GemmInput& b, const Tensor& bias, double alpha,
             double beta, const GemmMode& mode, float* a_sums, bool* summed) {
  GemmArgs g = checked_args(out, a, b, bias);
  g.alpha = alpha, g.beta = beta;
  const Device d = out.device();
  if (g.c_dtype == DType::bf16) {
    LOWBIT_CHECK(beta == 0, value, "gemm", "nothing can be added to an output that is bf16 (got beta=", beta,
                 ")");
    if (!d.is_cuda()) {  // those kernels add up in C
      Tensor sums = Tensor::empty(out.shape(), DType::f32, d);
      product(sums, a, b, bias.defined() ? bias.cast(DType::f32) : bias, alpha, 0, mode, nullptr, nullptr);
      return out.copy_from(sums);
    }
  }
  if (mode.digits && detail::digits_apply(g)) {
    detail::DigitProducts one{1, 0, {g}, {}};
    return run_digits(one, mode, d);
  }
  if (mode.parts && detail::parts_apply(g)) {
    g.library = mode.library && d.is_cuda();
    return detail::gemm_parts(g, mode.parts, d);
  }
  const detail::PreparedOperands keep = detail::prepare_operands(g, mode, d);
  if (g.a.dtype == a.values().dtype()) g.a_sums = a_sums, g.summed = summed;  // not of rounded numbers
  gemm_kernel(g, d);
}

}  // namespace

void gemm(Tensor& out, const GemmInput& a, const GemmInput& b, const Tensor& bias, double alpha, double beta,
          const GemmMode& mode) {
  product(out, a, b, bias, alpha, beta, mode, nullptr, nullptr);
}

bool gemm_with_sums(Tensor& out, Tensor& a_sums, const GemmInput& a, const GemmInput& b,
                    const GemmMode& mode) {
  LOWBIT_CHECK(out.ndim() == 2 && a_sums.shape() == Shape{out.size(0)} && a_sums.dtype() == out.dtype() &&
                   a_sums.contiguous() && a_sums.device() == out.device(),
               shape, "gemm", "sums must be a contiguous vector with one value per row of a matrix (got ",
               a_sums.str(), " and ", out.str(), ")");
  bool summed = false;
  const bool possible = mode.library && out.device().is_cuda() && out.dtype() == DType::f32;
  product(out, a, b, {}, 1, 0, mode, possible ? a_sums.data<float>() : nullptr, &summed);
  return summed;
}

bool gemm_together(std::span<const GemmProduct> products, std::span<const ColumnSums> sums,
                   const GemmMode& mode) {
  if (!mode.digits || products.empty() || products.size() > size_t{kProductsTogether} ||
      sums.size() > size_t{detail::kDigitSums})
    return false;
  detail::DigitProducts all;
  for (const ColumnSums& s : sums) {
    // A column of its own is summed as a row (rule 3).
    if (s.x.dtype() != DType::f32 || s.x.ndim() != 2 || s.x.size(1) == 1 || !s.x.contiguous()) return false;
    Tensor out = s.out;
    LOWBIT_CHECK(out.shape() == Shape{s.x.size(1)} && out.dtype() == DType::f32 && out.contiguous(), shape,
                 "gemm", "sums must be a contiguous f32 [", s.x.size(1), "] (got ", out.str(), ")");
    all.sum[all.sums++] = {s.x.view().as<const float>(), s.x.size(0), s.x.size(1), out.data<float>(),
                           nullptr};
  }
  for (const GemmProduct& p : products) {
    Tensor out = p.out;
    GemmArgs g = checked_args(out, p.a, p.b, {});
    g.alpha = p.alpha;
    if (!detail::digits_apply(g)) return false;
    LOWBIT_CHECK(!p.add || (all.count > 0 && g.c == all.product[all.count - 1].c && out.ndim() == 2), shape,
                 "gemm",
                 "a product is added to the out of the one before it, without leading dimensions (got ",
                 out.str(), ")");
    g.beta = p.add ? 1 : 0;
    all.product[all.count++] = g;
  }
  run_digits(all, mode, products[0].out.device());
  return true;
}

Tensor matmul(const GemmInput& a, const GemmInput& b, const Tensor& bias, double alpha) {
  a.check("matmul"), b.check("matmul");
  Shape s = gemm_batch_shape("matmul", a, b);
  s.append(a.rows());
  s.append(b.cols());
  Tensor out = Tensor::empty(s, result_type(a), a.values().device());
  gemm(out, a, b, bias, alpha);
  return out;
}

}  // namespace lowbit
