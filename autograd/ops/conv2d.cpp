#include "autograd/ops/conv2d.h"

#include <algorithm>
#include <cmath>

#include "autograd/ops/broadcast.h"
#include "autograd/ops/check.h"
#include "autograd/ops/operand.h"
#include "tensor/engine/pointwise.h"

namespace lowbit {
namespace {

int64_t grain(int64_t work) { return std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(work, 1)); }

template <class T>
void im2col_typed(const Im2colArgs& a) {
  const ConvGeometry g = a.g;
  const T *const x = a.x.as<T>(), zero = T(a.pad);
  T* const columns = a.columns.as<T>();
  const int64_t row = g.taps() * g.channels();
  parallel_for(a.out_pixels, grain(row), [=](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      for (int64_t t = 0; t < g.taps(); ++t) {
        const int64_t from = g.source(p, t);
        for (int64_t group = 0; group < g.groups; ++group) {
          T* const to = columns + p * row + (group * g.taps() + t) * g.depth;
          if (from < 0)
            std::fill_n(to, g.depth, zero);
          else
            std::copy_n(x + from * g.channels() + group * g.depth, g.depth, to);
        }
      }
  });
}

void im2col_cpu(const Im2colArgs& a, Stream) {
  if (a.x.dtype == DType::u8)
    im2col_typed<uint8_t>(a);
  else if (a.x.dtype == DType::i8)
    im2col_typed<int8_t>(a);
  else
    dispatch_real(a.x.dtype, [&](auto t) { im2col_typed<decltype(t)>(a); });
}

template <class T>
void col2im_typed(const Col2imArgs& a) {
  const ConvGeometry g = a.g;
  const T* const columns = a.dcolumns.as<T>();
  T* const dx = a.dx.as<T>();
  const int64_t row = g.taps() * g.channels();
  parallel_for(a.pixels, grain(row), [=](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      T* const to = dx + p * g.channels();
      std::fill_n(to, g.channels(), T(0));
      for (int64_t t = 0; t < g.taps(); ++t) {
        const int64_t pixel = g.target(p, t);
        if (pixel < 0) continue;
        for (int64_t group = 0; group < g.groups; ++group) {
          const T* const from = columns + pixel * row + (group * g.taps() + t) * g.depth;
#pragma omp simd
          for (int64_t d = 0; d < g.depth; ++d) to[group * g.depth + d] += from[d];
        }
      }
    }
  });
}

void col2im_cpu(const Col2imArgs& a, Stream) {
  dispatch_real(a.dx.dtype, [&](auto t) { col2im_typed<decltype(t)>(a); });
}

/// [pixels, groups·n] seen as [groups, pixels, n].
Tensor by_groups(const Tensor& t, int64_t groups) {
  return t.reshape({t.size(0), groups, t.size(1) / groups}).transpose(0, 1);
}

Tensor columns_of(const Tensor& x, const ConvGeometry& g, int pad) {  // [groups, output pixels, K·K·D]
  const int64_t pixels = x.size(0) * g.out_pixels();
  const Tensor from = x.packed();
  Tensor columns = Tensor::empty({pixels, g.channels() * g.taps()}, x.dtype(), x.device());
  im2col({columns.mutable_view(), from.view(), g, pixels, pad}, x.device());
  return by_groups(columns, g.groups);
}

Operand columns_of(const Operand& x, const ConvGeometry& g) {
  const int pad = x.coded() ? int(-x.codes.shift) : 0;
  return moved(x, [&](const Tensor& t) { return columns_of(t, g, pad); });
}

/// Codes where one scale serves all of them and zero is one of them.
Operand operand(const Variable& x) {
  Operand r;
  const Coded* c = x.coded();
  const bool zero = c && !c->offset.defined() && c->shift == std::rint(c->shift) && -c->shift >= c->lo &&
                    -c->shift <= c->hi;
  if (c && c->per_tensor() && zero)
    r.codes = *c;
  else
    r.floats = x.data();
  return r;
}

/// In the order of the columns: [groups, O/groups, K·K·D].
Operand weight_rows(const Operand& w, int64_t groups) {
  return moved(w, [&](const Tensor& t) {
    const int64_t o = t.size(0), k = o ? t.numel() / o : 0;
    return t.permute({0, 2, 3, 1}).packed().reshape({groups, o / groups, k});
  });
}

constinit const ConvLibrary* library = nullptr;

/// Floats of a pass as the library takes them; bf16 is exact in tf32.
Tensor library_operand(const Tensor& t) {
  return context().gemm == MathMode::bf16 ? t.packed().cast(DType::bf16).cast(DType::f32) : t.packed();
}
Tensor library_weight(const Tensor& w) { return library_operand(w.permute({0, 2, 3, 1})); }

/// One pass by the library; false where it has none for it. `x`, `w`, `y` as in ConvArgs; one is written.
bool by_library(ConvPass pass, const Tensor& x, const Tensor& w, const Tensor& y, const ConvGeometry& g) {
  const auto data = [](const Tensor& t) { return static_cast<float*>(t.view().data); };
  ConvArgs a{pass, data(x), data(w), data(y), g, x.size(0), w.size(0), context().gemm != MathMode::f32};
  const Device d = x.device();
  size_t bytes = 0;
  if (!library->plan(a, d, bytes)) return false;
  const Tensor work = Tensor::empty({int64_t(bytes)}, DType::u8, d);
  a.work = work.view().data;
  library->run(a, current_stream(d));
  return true;
}

/// The library computes products of floats on CUDA.
bool library_takes(const Operand& x, const Operand& w) {
  return library && context().library_products && !x.coded() && !w.coded() && x.floats.device().is_cuda() &&
         x.floats.dtype() == DType::f32 && x.floats.numel() > 0 && w.floats.numel() > 0;
}

struct Conv2dNode final : Node {
  SavedOperand x, w;  // [B, H, W, C], [O, D, K, K]
  ConvGeometry g;
  bool library_form = false;
  const char* name() const override { return "conv2d"; }
  bool library_data_gradient(const Tensor& gy, const Tensor& dx) const {
    return library_form && by_library(ConvPass::data_gradient, dx,
                                      library_weight(w.operand(name(), 1).floats), library_operand(gy), g);
  }
  bool library_weight_gradient(const Tensor& gy, Tensor& dw) const {
    if (!library_form) return false;
    const int64_t k = g.kernel;
    const Tensor by_tap = Tensor::empty({gy.size(-1), k, k, g.depth}, gy.dtype(), gy.device());
    if (!by_library(ConvPass::weight_gradient, library_operand(x.operand(name(), 0).floats), by_tap,
                    library_operand(gy), g))
      return false;
    dw.copy_from(by_tap.permute({0, 3, 1, 2}));
    return true;
  }
  void backward(const Tensor& gy, GradSink& gx) override {
    if (gx.wants(0)) {
      Tensor dx = gx.alloc(0);
      if (!library_data_gradient(gy, dx)) data_gradient(gy, dx);
      gx.add(0, dx);
    }
    if (gx.wants(1)) {
      Tensor dw = gx.alloc(1);
      if (!library_weight_gradient(gy, dw)) weight_gradient(gy, dw);
      gx.add(1, dw);
    }
  }
  /// [groups, pixels, O/groups]
  Tensor rows_of(const Tensor& gy) const {
    const int64_t o = gy.size(-1), pixels = o ? gy.numel() / o : 0;
    return by_groups(gy.packed().reshape({pixels, o}), g.groups);
  }
  void data_gradient(const Tensor& gy, Tensor& dx) const {
    const Tensor rows = rows_of(gy);
    Tensor columns = Tensor::empty({rows.size(1), g.channels() * g.taps()}, gy.dtype(), gy.device());
    Tensor view = by_groups(columns, g.groups);
    gradient_product(view, rows, weight_rows(w.operand(name(), 1), g.groups).input());
    col2im({dx.mutable_view(), columns.view(), g, dx.numel() / g.channels()}, gy.device());
  }
  void weight_gradient(const Tensor& gy, Tensor& dw) const {
    const int64_t k = g.kernel, o = gy.size(-1);
    Tensor by_tap = Tensor::empty({g.groups, o / g.groups, k * k * g.depth}, gy.dtype(), gy.device());
    gradient_product(by_tap, GemmInput(rows_of(gy)).t(), columns_of(x.operand(name(), 0), g).input());
    dw.copy_from(by_tap.reshape({o, k, k, g.depth}).permute({0, 3, 1, 2}));
  }
  void release() override { x.release(), w.release(); }
  std::vector<Tensor> saved() const override { return {x.peek(), w.peek()}; }
};

ConvGeometry geometry(const Variable& x, const Variable& w, const Variable& b, const ConvOptions& o) {
  LOWBIT_CHECK(o.stride > 0 && o.padding >= 0 && o.groups > 0, value, "conv2d",
               "stride and groups must be positive, padding not negative (got ", o.stride, ", ", o.groups,
               ", ", o.padding, ")");
  LOWBIT_CHECK(x.ndim() == 4 && w.ndim() == 4 && w.size(2) == w.size(3) && w.size(2) > 0 &&
                   x.size(3) == o.groups * w.size(1) && w.size(0) % o.groups == 0,
               shape, "conv2d", "x must be [B, H, W, C] and weight [O, C/", o.groups,
               ", K, K] with O a multiple of the groups (got x=", x.str(), ", weight=", w.str(), ")");
  LOWBIT_CHECK(!b.defined() || (b.ndim() == 1 && b.size(0) == w.size(0)), shape, "conv2d",
               "bias must have one value per output (got bias=", b.str(), ", weight=", w.str(), ")");
  const ConvGeometry g{x.size(1), x.size(2), o.groups, w.size(1), w.size(2), o.stride, o.padding};
  LOWBIT_CHECK(g.height + 2 * g.padding >= g.kernel && g.width + 2 * g.padding >= g.kernel, shape, "conv2d",
               "the kernel must fit on the padded map (got x=", x.str(), ", weight=", w.str(), ")");
  return g;
}

}  // namespace

KernelSlot<Im2colArgs> im2col{"conv2d.im2col", im2col_cpu};
KernelSlot<Col2imArgs> col2im{"conv2d.col2im", col2im_cpu};

void set_conv_library(const ConvLibrary* l) { library = l; }
bool conv_library_present() { return library != nullptr; }

Variable conv2d(const Variable& x, const Variable& w, const Variable& b, const ConvOptions& o) {
  check_float("conv2d", "x", x);
  const ConvGeometry g = geometry(x, w, b, o);
  check_same_kind("conv2d", "x", x, "weight", w);
  const int64_t outputs = w.size(0), pixels = x.size(0) * g.out_pixels();
  Tensor y = Tensor::empty({x.size(0), g.out(g.height), g.out(g.width), outputs}, x.dtype(), x.device());
  const Operand xi = operand(x), wi = operand(w);
  const bool library_form = library_takes(xi, wi);
  if (!library_form ||
      !by_library(ConvPass::forward, library_operand(xi.floats), library_weight(wi.floats), y, g)) {
    Tensor rows = by_groups(y.reshape({pixels, outputs}), g.groups);
    product_nt(rows, columns_of(xi, g).input(), weight_rows(wi, g.groups).input(), {}, 1);
  }
  std::shared_ptr<Conv2dNode> node;
  if (needs_grad({x, w})) {
    node = std::make_shared<Conv2dNode>();
    node->g = g, node->library_form = library_form;
    if (w.requires_grad()) node->x.set(xi);
    if (x.requires_grad()) node->w.set(wi);
  }
  const Variable products = record(std::move(y), std::move(node), {x, w});
  return b.defined() ? add(products, b) : products;
}

}  // namespace lowbit
