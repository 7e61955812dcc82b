#pragma once
// Pointwise engine: y[i] = f(a[i], b[i], …) over views of one shape with arbitrary strides; broadcasting is a
// stride of 0 (Tensor::expand). The CUDA side is tensor/engine/pointwise.cuh, called the same way with a
// stream at the end.
//
//   cpu::pointwise({y, x}, f);                  // y = f(x)       views: outputs first; f: template <class T>
//   T (T…) cpu::pointwise({y, a, b}, f);               // y = f(a, b) cpu::pointwise<2>({da, db, g, a, b},
//   f);    // f returns Pack<T, 2> cpu::pointwise_indexed({y, x}, f);          // f(int64_t i, T…): i is the
//   flat index in the common shape
//
// All views have the dtype of the first, f32 or f64; the choice is made once per call. For other element
// types name them, outputs first: cpu::pointwise_typed<1, false, uint8_t, float>({code, x}, f). Storage types
// (bf16, f16) reach f as float. An output may be the same window as an input; other overlaps are not allowed.

#include <array>
#include <tuple>

#include "tensor/core/copy.h"
#include "tensor/engine/row.h"

namespace lowbit {

/// Calls f(T{}) for T = float or double, the types of the CPU engines.
template <class F>
void dispatch_real(DType t, F&& f) {
  if (t == DType::f32)
    f(float{});
  else if (t == DType::f64)
    f(double{});
  else
    fail(ErrorKind::dtype, "pointwise", str_cat("dtype must be f32 or f64 (got ", dtype_name(t), ")"));
}

namespace cpu {
namespace detail {

/// How the innermost dimension is stepped through: the compiler vectorises what it knows at compile time.
inline constexpr int kAllUnit = -1, kAnyStride = -2;  // k ≥ 0: operand k is a scalar, all others are packed

template <int Outputs, bool Indexed, class... T>
struct PointwiseLoop {
  static constexpr int N = sizeof...(T);
  using Types = std::tuple<T...>;
  template <int k>
  using Element = std::tuple_element_t<size_t(k), Types>;

  /// One run of n elements along the innermost dimension; p are the operands' first elements, i0 the flat
  /// index.
  template <int Mode, class F>
  LOWBIT_HD static void run(void* const* p, const int64_t* stride, int64_t n, int64_t i0, F& f) {
    run<Mode>(p, stride, n, i0, f, std::make_integer_sequence<int, Outputs>{},
              std::make_integer_sequence<int, N - Outputs>{});
  }
  template <int Mode, class F, int... o, int... k>
  LOWBIT_HD static void run(void* const* p, const int64_t* stride, int64_t n, int64_t i0, F& f,
                            std::integer_sequence<int, o...>, std::integer_sequence<int, k...>) {
    const std::array<int64_t, N> s = [&] {
      std::array<int64_t, N> r;
      for (int i = 0; i < N; ++i) r[size_t(i)] = stride[i];
      return r;
    }();
    const auto at = [&s](auto* base, auto operand, int64_t i) __attribute__((always_inline))->auto& {
      constexpr int q = decltype(operand)::value;
      if constexpr (Mode == q)
        return base[0];
      else if constexpr (Mode == kAnyStride)
        return base[i * s[size_t(q)]];
      else
        return base[i];
    };
    const std::tuple<T*...> base = bases(p, std::make_integer_sequence<int, N>{});
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const auto call = [&](auto... x) __attribute__((always_inline)) {
        if constexpr (Indexed)
          return f(i0 + i, x...);
        else
          return f(x...);
      };
      const auto r = call(compute_t<Element<Outputs + k>>(
          at(std::get<size_t(Outputs + k)>(base), std::integral_constant<int, Outputs + k>{}, i))...);
      const auto v = PackTraits<std::decay_t<decltype(r)>>::wrap(r);
      ((at(std::get<size_t(o)>(base), std::integral_constant<int, o>{}, i) = Element<o>(v.v[o])), ...);
    }
  }
  template <int... k>
  static std::tuple<T*...> bases(void* const* p, std::integer_sequence<int, k...>) {
    return {static_cast<T*>(p[k])...};
  }

  template <int Mode, class F>
  static void walk(const View (&v)[size_t(N)], F& f) {
    const int last = v[0].ndim - 1;
    const int64_t inner = v[0].shape[last];
    parallel_wide(v[0].numel(), kGrain, [&](int64_t begin, int64_t end) {
      int64_t index[kMaxDims] = {}, stride[N];
      for (int k = 0; k < N; ++k) stride[k] = v[k].stride[last];
      for (int64_t d = last, rest = begin; d >= 0; rest /= v[0].shape[d], --d)
        index[d] = rest % v[0].shape[d];
      for (int64_t i = begin; i < end;) {
        void* p[N];
        constexpr size_t size[] = {sizeof(T)...};
        for (int k = 0; k < N; ++k) {
          int64_t offset = 0;
          for (int d = 0; d <= last; ++d) offset += index[d] * v[k].stride[d];
          p[k] = static_cast<char*>(v[k].data) + offset * int64_t(size[k]);
        }
        const int64_t n = std::min(end - i, inner - index[last]);
        run<Mode>(p, stride, n, i, f);
        i += n;
        index[last] = 0;
        for (int d = last - 1; d >= 0 && ++index[d] == v[0].shape[d]; --d) index[d] = 0;
      }
    });
  }

  template <class F>
  static void choose(const View (&v)[size_t(N)], F& f) {
    const int last = v[0].ndim - 1;
    int scalar = kAllUnit, odd = 0;
    for (int k = 0; k < N; ++k) {
      if (v[k].stride[last] == 1 || v[0].shape[last] == 1) continue;
      if (v[k].stride[last] == 0 && k >= Outputs && scalar == kAllUnit)
        scalar = k;
      else
        ++odd;
    }
    if (odd) return walk<kAnyStride>(v, f);
    if (scalar == kAllUnit) return walk<kAllUnit>(v, f);
    [&]<int... k>(std::integer_sequence<int, k...>) {
      ((scalar == Outputs + k ? walk<Outputs + k>(v, f) : void()), ...);
    }
    (std::make_integer_sequence<int, N - Outputs>{});
  }
};

template <size_t, class T>
using Repeat = T;

template <int Outputs, bool Indexed, size_t N, class F>
void pointwise_real(const View (&v)[N], F& f) {
  dispatch_real(v[0].dtype, [&](auto t) {
    using T = decltype(t);
    [&]<size_t... k>(std::index_sequence<k...>) {
      using Loop = PointwiseLoop<Outputs, Indexed, Repeat<k, T>...>;
      Loop::choose(v, f);
    }
    (std::make_index_sequence<N>{});
  });
}

template <size_t N>
bool prepare(View (&v)[N], const View (&views)[N]) {
  std::copy_n(views, N, v);
  if (v[0].numel() == 0) return false;
  collapse_dims(v, int(N));
  return true;
}

}  // namespace detail

template <int Outputs = 1, size_t N, class F>
void pointwise(const View (&views)[N], F f) {
  View v[N];
  if (detail::prepare(v, views)) detail::pointwise_real<Outputs, false>(v, f);
}

template <int Outputs = 1, size_t N, class F>
void pointwise_indexed(const View (&views)[N], F f) {
  View v[N];
  if (detail::prepare(v, views)) detail::pointwise_real<Outputs, true>(v, f);
}

template <int Outputs, bool Indexed, class... T, class F>
void pointwise_typed(const View (&views)[sizeof...(T)], F f) {
  View v[sizeof...(T)];
  if (detail::prepare(v, views)) detail::PointwiseLoop<Outputs, Indexed, T...>::choose(v, f);
}

}  // namespace cpu
}  // namespace lowbit
