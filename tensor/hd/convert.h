#pragma once
// Element conversion between any two element types: float → integer truncates towards zero and saturates, NaN
// gives 0; anything → bool is "not zero".

#include <cstdint>
#include <limits>
#include <type_traits>

#include "tensor/hd/half.h"
#include "tensor/hd/macros.h"

namespace lowbit {

/// Constants and not calls: the CUDA compiler runs no host function on the device, constexpr or not.
template <class D>
struct Limits {
  static constexpr D lo = std::numeric_limits<D>::min(), hi = std::numeric_limits<D>::max();
};

template <class D, class S>
LOWBIT_HD D convert(S s) {
  using V = compute_t<S>;
  const V v = static_cast<V>(s);
  if constexpr (std::is_same_v<D, bool>)
    return v != V(0);
  else if constexpr (std::is_same_v<D, bf16> || std::is_same_v<D, f16>)
    return D(static_cast<float>(v));
  else if constexpr (std::is_integral_v<D> && std::is_floating_point_v<V>) {
    constexpr D lo = Limits<D>::lo, hi = Limits<D>::hi;
    if (v != v) return D(0);
    if (v <= static_cast<V>(lo)) return lo;
    if (v >= static_cast<V>(hi)) return hi;
    return static_cast<D>(v);
  } else
    return static_cast<D>(v);
}

}  // namespace lowbit
