#pragma once
// Elementwise ops of one input. Adding one = one struct, one line in a list below, one row in
// tests/autograd/pointwise_test.cpp; kernels, nodes, functions, tests and benchmarks expand the lists.

#include "tensor/core/kernel_slot.h"
#include "tensor/core/tensor.h"
#include "tensor/hd/macros.h"
#include "tensor/hd/math.h"

namespace lowbit {

class Variable;

/// What backward needs. The input is shared with the op that made it; the output belongs to this op.
enum class Saves : uint8_t { nothing, input, output };

namespace pointwise {

/// Exact GELU: y = x·Φ(x).  dy/dx = Φ(x) + x·φ(x).  (Hendrycks & Gimpel 2016, eq. 1)
struct Gelu {
  static constexpr Saves saves = Saves::input;
  template <class T>
  LOWBIT_HD T fwd(T x) const {
    return x * math::normal_cdf(x);
  }
  template <class T>
  LOWBIT_HD T slope(T x) const {
    return math::normal_cdf(x) + x * math::normal_pdf(x);
  }
  template <class T>
  LOWBIT_HD T bwd(T gy, T x, T /*y*/) const {
    return gy * slope(x);
  }
};

/// GELU by tanh: y = x/2·(1 + tanh(u)), u = √(2/π)·(x + 0.044715·x³).  (Hendrycks & Gimpel 2016, eq. 2)
struct GeluTanh {
  static constexpr Saves saves = Saves::input;
  static constexpr double kRoot = 0.79788456080286535588, kCubic = 0.044715;
  template <class T>
  LOWBIT_HD T fwd(T x) const {
    return T(0.5) * x * (T(1) + math::tanh(T(kRoot) * (x + T(kCubic) * x * x * x)));
  }
  template <class T>
  LOWBIT_HD T bwd(T gy, T x, T /*y*/) const {
    const T t = math::tanh(T(kRoot) * (x + T(kCubic) * x * x * x));
    const T du = T(kRoot) * (T(1) + T(3 * kCubic) * x * x);
    return gy * (T(0.5) * (T(1) + t) + T(0.5) * x * (T(1) - t * t) * du);
  }
};

/// y = max(x, 0); the gradient at 0 is 0.
struct Relu {
  static constexpr Saves saves = Saves::output;
  template <class T>
  LOWBIT_HD T fwd(T x) const {
    return x < T(0) ? T(0) : x;  // keeps NaN
  }
  template <class T>
  LOWBIT_HD T bwd(T gy, T /*x*/, T y) const {
    return y > T(0) ? gy : T(0);
  }
};

/// y = eˣ
struct Exp {
  static constexpr Saves saves = Saves::output;
  template <class T>
  LOWBIT_HD T fwd(T x) const {
    return math::exp(x);
  }
  template <class T>
  LOWBIT_HD T bwd(T gy, T /*x*/, T y) const {
    return gy * y;
  }
};

/// y = ln x
struct Log {
  static constexpr Saves saves = Saves::input;
  template <class T>
  LOWBIT_HD T fwd(T x) const {
    return math::log(x);
  }
  template <class T>
  LOWBIT_HD T bwd(T gy, T x, T /*y*/) const {
    return gy / x;
  }
};

/// y = √x; the gradient at 0 is infinite.
struct Sqrt {
  static constexpr Saves saves = Saves::output;
  template <class T>
  LOWBIT_HD T fwd(T x) const {
    return math::sqrt(x);
  }
  template <class T>
  LOWBIT_HD T bwd(T gy, T /*x*/, T y) const {
    return T(0.5) * gy / y;
  }
};

/// y = tanh x
struct Tanh {
  static constexpr Saves saves = Saves::output;
  template <class T>
  LOWBIT_HD T fwd(T x) const {
    return math::tanh(x);
  }
  template <class T>
  LOWBIT_HD T bwd(T gy, T /*x*/, T y) const {
    return gy * (T(1) - y * y);
  }
};

/// y = 1 / (1 + e⁻ˣ)
struct Sigmoid {
  static constexpr Saves saves = Saves::output;
  template <class T>
  LOWBIT_HD T fwd(T x) const {
    return T(1) / (T(1) + math::exp(-x));
  }
  template <class T>
  LOWBIT_HD T bwd(T gy, T /*x*/, T y) const {
    return gy * (y * (T(1) - y));
  }
};

/// y = −x
struct Neg {
  static constexpr Saves saves = Saves::nothing;
  template <class T>
  LOWBIT_HD T fwd(T x) const {
    return -x;
  }
  template <class T>
  LOWBIT_HD T bwd(T gy, T /*x*/, T /*y*/) const {
    return -gy;
  }
};

/// y = x²
struct Square {
  static constexpr Saves saves = Saves::input;
  template <class T>
  LOWBIT_HD T fwd(T x) const {
    return x * x;
  }
  template <class T>
  LOWBIT_HD T bwd(T gy, T x, T /*y*/) const {
    return gy * (x + x);
  }
};

/// y = |x|; the gradient at 0 is 0.
struct Abs {
  static constexpr Saves saves = Saves::input;
  template <class T>
  LOWBIT_HD T fwd(T x) const {
    return x < T(0) ? -x : x;
  }
  template <class T>
  LOWBIT_HD T bwd(T gy, T x, T /*y*/) const {
    return x > T(0) ? gy : x < T(0) ? -gy : T(0);
  }
};

/// y = factor·x
struct Scale {
  static constexpr Saves saves = Saves::nothing;
  double factor;
  template <class T>
  LOWBIT_HD T fwd(T x) const {
    return x * T(factor);
  }
  template <class T>
  LOWBIT_HD T bwd(T gy, T /*x*/, T /*y*/) const {
    return gy * T(factor);
  }
};

/// y = x + addend
struct AddScalar {
  static constexpr Saves saves = Saves::nothing;
  double addend;
  template <class T>
  LOWBIT_HD T fwd(T x) const {
    return x + T(addend);
  }
  template <class T>
  LOWBIT_HD T bwd(T gy, T /*x*/, T /*y*/) const {
    return gy;
  }
};

/// y = min(max(x, lo), hi); the gradient passes where lo ≤ x ≤ hi.
struct Clamp {
  static constexpr Saves saves = Saves::input;
  double lo, hi;
  template <class T>
  LOWBIT_HD T fwd(T x) const {
    return math::clamp(x, T(lo), T(hi));
  }
  template <class T>
  LOWBIT_HD T bwd(T gy, T x, T /*y*/) const {
    const T low = T(lo), high = T(hi);  // loaded before the test: a load inside it would not vectorise
    return (x >= low) & (x <= high) ? gy : T(0);
  }
};

}  // namespace pointwise

// X(Struct, function)
#define LOWBIT_UNARY_LIST(X)        \
  X(pointwise::Gelu, gelu)          \
  X(pointwise::GeluTanh, gelu_tanh) \
  X(pointwise::Relu, relu)          \
  X(pointwise::Exp, exp)            \
  X(pointwise::Log, log)            \
  X(pointwise::Sqrt, sqrt)          \
  X(pointwise::Tanh, tanh)          \
  X(pointwise::Sigmoid, sigmoid)    \
  X(pointwise::Neg, neg)            \
  X(pointwise::Square, square)      \
  X(pointwise::Abs, abs)

// The same for structs with parameters; their functions are declared by hand below.
#define LOWBIT_UNARY_PARAMETER_LIST(X) \
  X(pointwise::Scale, scale)           \
  X(pointwise::AddScalar, add_scalar)  \
  X(pointwise::Clamp, clamp)

/// Views of one shape and dtype, any strides; x may be bf16 beside f32.
template <class F>
struct UnaryFwdArgs {
  F f;
  View y, x;
};
/// `saved` is x or y as F::saves says, x may be bf16 beside f32; unused for Saves::nothing.
template <class F>
struct UnaryBwdArgs {
  F f;
  View dx, gy, saved;
};

/// What the engines call.
template <class F>
struct UnaryFwd {
  F f;
  template <class T>
  LOWBIT_HD T operator()(T x) const {
    return f.fwd(x);
  }
};
template <class F>
struct UnaryBwd {
  F f;
  template <class T>
  LOWBIT_HD T operator()(T gy) const {
    return f.bwd(gy, T(0), T(0));
  }
  template <class T>
  LOWBIT_HD T operator()(T gy, T saved) const {
    return F::saves == Saves::input ? f.bwd(gy, saved, T(0)) : f.bwd(gy, T(0), saved);
  }
};

#define LOWBIT_DECLARE_UNARY_SLOTS(F, name)      \
  extern KernelSlot<UnaryFwdArgs<F>> name##_fwd; \
  extern KernelSlot<UnaryBwdArgs<F>> name##_bwd;
LOWBIT_UNARY_LIST(LOWBIT_DECLARE_UNARY_SLOTS)
LOWBIT_UNARY_PARAMETER_LIST(LOWBIT_DECLARE_UNARY_SLOTS)
#undef LOWBIT_DECLARE_UNARY_SLOTS

/// Shapes  x, y of any shape, f32 or f64; a narrow x is read and kept as bf16
/// Errors  dtype: x is not floating;  value (clamp): lo > hi
#define LOWBIT_DECLARE_UNARY(F, name) Variable name(const Variable& x);
LOWBIT_UNARY_LIST(LOWBIT_DECLARE_UNARY)
#undef LOWBIT_DECLARE_UNARY
Variable scale(const Variable& x, double factor);
Variable add_scalar(const Variable& x, double addend);
Variable clamp(const Variable& x, double lo, double hi);

}  // namespace lowbit
