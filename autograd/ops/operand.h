#pragma once
// Operands of products, floats or codes. Included by the .cpp files of ops only.

#include <algorithm>
#include <vector>

#include "autograd/core/node.h"
#include "autograd/ops/reduce.h"
#include "tensor/core/context.h"
#include "tensor/engine/accumulate.h"
#include "tensor/engine/gemm.h"
#include "tensor/engine/gemm_int8.h"

namespace lowbit {

/// One operand of a product: codes where it has them, floats otherwise.
struct Operand {
  Tensor floats;
  Coded codes;
  bool coded() const { return codes.defined(); }
  const Tensor& values() const { return coded() ? codes.codes : floats; }
  GemmInput input() const { return coded() ? GemmInput(codes) : GemmInput(floats); }
  /// Type of a product with it.
  DType result() const { return coded() || floats.dtype() == DType::bf16 ? DType::f32 : floats.dtype(); }
};

/// An activation as a float product takes it and keeps it for backward: where products are of bf16, rounded
/// once, at half the size.
inline Operand activation(Operand x) {
  if (!x.coded() && context().gemm == MathMode::bf16 && x.floats.dtype() == DType::f32)
    x.floats = x.floats.cast(DType::bf16);
  return x;
}

/// The same scale over moved values: f maps the floats or the codes.
template <class F>
Operand moved(const Operand& x, F f) {
  Operand r;
  if (x.coded()) {
    r.codes = x.codes;
    r.codes.codes = f(x.codes.codes);
  } else {
    r.floats = f(x.floats);
  }
  return r;
}

/// The same, kept for backward.
class SavedOperand {
 public:
  void set(const Operand& x) {
    if (x.coded())
      codes_.set(x.codes);
    else
      floats_.set(x.floats);
  }
  GemmInput get(const char* op, int index) const {
    return codes_.defined() ? GemmInput(codes_.get(op, index)) : GemmInput(floats_.get(op, index));
  }
  Operand operand(const char* op, int index) const {
    return codes_.defined() ? Operand{{}, codes_.get(op, index)} : Operand{floats_.get(op, index), {}};
  }
  void release() { codes_.release(), floats_.release(); }
  Tensor peek() const { return codes_.defined() ? codes_.get("", 0).codes : floats_.peek(); }

 private:
  Saved floats_;
  SavedCodes codes_;
};

/// What the context asks of float products; `gradient`: of those with one operand of codes too.
inline GemmMode product_mode(bool gradient) {
  const Context& c = context();
  GemmMode m{.inputs = c.gemm, .library = c.library_products};
  if (!gradient) return m;
  constexpr int digits[] = {0, 2, 3, 0, 0, 0}, parts[] = {0, 0, 0, 1, 2, 3};  // by BackwardProducts
  m.digits = digits[int(c.backward)], m.parts = parts[int(c.backward)];
  return m;
}

inline bool on_integers(const GemmInput& a, const GemmInput& b) {
  return context().integer_products && a.coded() && b.coded() && coded_gemm_supported(a, b);
}

/// out[.., M, N] = factor · a[.., M, K] · b[.., N, K]ᵀ (+ bias): on integers where both operands are codes.
inline void product_nt(Tensor& out, const GemmInput& a, const GemmInput& b, const Tensor& bias,
                       double factor) {
  if (on_integers(a, b))
    coded_gemm(out, a, b, bias, factor);
  else
    gemm(out, a, b.t(), bias, factor, 0, product_mode(false));
}

/// out = factor · a · b, the product of a gradient: as the context wants it where b or a is coded.
inline void gradient_product(Tensor& out, const GemmInput& a, const GemmInput& b, double factor = 1) {
  gemm(out, a, b, {}, factor, 0, product_mode(true));
}

/// The products and sums that follow from gradients, in one launch where there is a kernel for them.
class GradientProducts {
 public:
  /// out = factor · a · b, as gradient_product(); out may be a window. `more`: added to the product before
  /// it, which has the same out.
  void add(const Tensor& out, const GemmInput& a, const GemmInput& b, double factor = 1, bool more = false) {
    products_.push_back({out, a, b, factor, more});
  }
  /// out[n] = Σ_m g[m, n]
  void sum_rows(const Tensor& out, const Tensor& g) { sums_.push_back({out, g}); }
  void run() {
    const GemmMode mode = product_mode(true);
    if (gemm_together(products_, sums_, mode)) return;
    for (GemmProduct& p : products_) {
      if (summed_with(p, mode)) continue;
      const bool in_parts = mode.digits || mode.parts;  // of which none begins with what is there
      if (!p.add || !in_parts) {
        gemm(p.out, p.a, p.b, {}, p.alpha, p.add ? 1 : 0, mode);
        continue;
      }
      Tensor product = Tensor::empty(p.out.shape(), p.out.dtype(), p.out.device());
      gemm(product, p.a, p.b, {}, p.alpha, 0, mode);
      accumulate({p.out.mutable_view(), product.view()}, p.out.device());
    }
    for (ColumnSums& s : sums_) s.out.copy_from(reduce_to(s.x, s.out.shape()));
  }

 private:
  /// The product xᵀ · b whose x is to be summed as well, where cuBLASLt does that beside it; then nothing is
  /// left to do.
  bool summed_with(GemmProduct& p, const GemmMode& mode) {
    const auto same = [&p](const ColumnSums& s) {
      return !p.add && p.a.transposed() && p.a.values().view().data == s.x.view().data && p.out.ndim() == 2;
    };
    const auto of = std::find_if(sums_.begin(), sums_.end(), same);
    if (of == sums_.end()) return false;
    if (gemm_with_sums(p.out, of->out, p.a, p.b, mode)) sums_.erase(of);
    return true;  // the product is there in any case
  }
  std::vector<GemmProduct> products_;
  std::vector<ColumnSums> sums_;
};

}  // namespace lowbit
