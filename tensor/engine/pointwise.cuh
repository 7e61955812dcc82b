#pragma once
// CUDA side of tensor/engine/pointwise.h, called the same way with a stream at the end. f is a struct with a
// LOWBIT_HD call operator. Element types f32 and bf16; bf16 reaches f as float.
//
//   cuda::pointwise({y, x}, f, stream);

#include <algorithm>
#include <tuple>

#include "tensor/core/copy.h"
#include "tensor/core/cuda_runtime.cuh"
#include "tensor/hd/row.h"

namespace lowbit::cuda {

namespace detail {

template <int N>
struct Views {
  View v[N];
};

/// The functor on operands Outputs, Outputs+1, … at element i, results into operands 0 … Outputs−1. T lists
/// the types.
template <bool Indexed, class T, class F, int... o, int... k, int N>
__device__ void apply(std::integer_sequence<int, o...>, std::integer_sequence<int, k...>,
                      const Views<N>& views, const int64_t (&at)[N], int64_t i, const F& f) {
  constexpr int outputs = sizeof...(o);
  const auto call = [&](auto... x) {
    if constexpr (Indexed)
      return f(i, x...);
    else
      return f(x...);
  };
  const auto result = call(static_cast<compute_t<std::tuple_element_t<outputs + k, T>>>(
      static_cast<const std::tuple_element_t<outputs + k, T>*>(
          views.v[outputs + k].data)[at[outputs + k]])...);
  const auto p = PackTraits<std::decay_t<decltype(result)>>::wrap(result);
  ((static_cast<std::tuple_element_t<o, T>*>(views.v[o].data)[at[o]] = std::tuple_element_t<o, T>(p.v[o])),
   ...);
}

template <int Outputs, bool Indexed, class T, int N, class F>
__global__ void pointwise_kernel(const __grid_constant__ Views<N> views, int64_t n, F f) {
  const View& first = views.v[0];
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < n;
       i += int64_t(gridDim.x) * blockDim.x) {
    int64_t at[N] = {}, rest = i;
    for (int d = first.ndim - 1; d > 0; --d) {
      const int64_t extent = first.shape[d];
      const int64_t up = n <= 0x7fffffff ? int64_t(uint32_t(rest) / uint32_t(extent)) : rest / extent;
      const int64_t c = rest - up * extent;
      rest = up;
#pragma unroll
      for (int k = 0; k < N; ++k) at[k] += c * views.v[k].stride[d];
    }
#pragma unroll
    for (int k = 0; k < N; ++k) at[k] += rest * views.v[k].stride[0];
    apply<Indexed, T>(std::make_integer_sequence<int, Outputs>{},
                      std::make_integer_sequence<int, N - Outputs>{}, views, at, i, f);
  }
}

template <int Outputs, bool Indexed, class T, int N, class F>
void launch(const View (&views)[N], const F& f, Stream stream) {
  Views<N> v;
  std::copy_n(views, N, v.v);
  const int64_t n = v.v[0].numel();
  if (n == 0) return;
  collapse_dims(v.v, N);
  constexpr int threads = 256;
  const unsigned grid = unsigned(std::min<int64_t>(ceil_div(n, threads), 1 << 16));
  cuda::launch("pointwise", pointwise_kernel<Outputs, Indexed, T, N, F>, grid, threads, stream, v, n, f);
}

template <size_t, class T>
using Repeat = T;
template <int Outputs, bool Indexed, int N, class F>
void pointwise_real(const View (&views)[N], const F& f, Stream stream) {
  const auto with = [&]<class T, size_t... k>(T, std::index_sequence<k...>) {
    launch<Outputs, Indexed, std::tuple<Repeat<k, T>...>>(views, f, stream);
  };
  constexpr auto all = std::make_index_sequence<size_t(N)>{};
  const DType t = views[0].dtype;
  if (t == DType::f32)
    with(float{}, all);
  else if (t == DType::bf16)
    with(bf16{}, all);
  else
    fail(ErrorKind::dtype, "pointwise",
         str_cat("dtype must be f32 or bf16 on cuda (got ", dtype_name(t), ")"));
}

}  // namespace detail

template <int Outputs = 1, int N, class F>
void pointwise(const View (&views)[N], const F& f, Stream stream) {
  detail::pointwise_real<Outputs, false>(views, f, stream);
}
template <int Outputs = 1, int N, class F>
void pointwise_indexed(const View (&views)[N], const F& f, Stream stream) {
  detail::pointwise_real<Outputs, true>(views, f, stream);
}
template <int Outputs, bool Indexed, class... T, class F>
void pointwise_typed(const View (&views)[sizeof...(T)], const F& f, Stream stream) {
  detail::launch<Outputs, Indexed, std::tuple<T...>, int(sizeof...(T))>(views, f, stream);
}

}  // namespace lowbit::cuda
