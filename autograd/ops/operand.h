#pragma once
// Operands of products, floats or codes. Included by the .cpp files of ops only.

#include "autograd/core/node.h"
#include "tensor/core/context.h"
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
};

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

inline bool on_integers(const GemmInput& a, const GemmInput& b) {
  return context().integer_products && a.coded() && b.coded() && coded_gemm_supported(a, b);
}

/// out[.., M, N] = factor · a[.., M, K] · b[.., N, K]ᵀ (+ bias): on integers where both operands are codes.
inline void product_nt(Tensor& out, const GemmInput& a, const GemmInput& b, const Tensor& bias,
                       double factor) {
  if (on_integers(a, b))
    coded_gemm(out, a, b, bias, factor);
  else
    gemm(out, a, b.t(), bias, factor);
}

/// out = factor · a · b, the product of a gradient: by digits where the context wants it and b or a is coded.
inline void gradient_product(Tensor& out, const GemmInput& a, const GemmInput& b, double factor = 1) {
  constexpr int digits[] = {0, 2, 3};  // by BackwardProducts
  gemm(out, a, b, {}, factor, 0, digits[int(context().backward)]);
}

}  // namespace lowbit
