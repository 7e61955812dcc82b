#pragma once
// What the two parts of library_bench share.

#include <chrono>
#include <cstdint>

#include "tensor/core/backend.h"

namespace lowbit::bench {

inline constexpr Device kGpu{Device::Kind::cuda, 0};

/// Seconds of one call, the mean over at least `seconds`.
template <class F>
double timed(double seconds, const F& f) {
  f();
  synchronize(kGpu);
  for (int n = 1;; n *= 2) {
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < n; ++i) f();
    synchronize(kGpu);
    const double s = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    if (s >= seconds) return s / n;
  }
}

/// One JSON line for each shape of attention (library_attention.cpp).
void measure_attention(int64_t batch, double seconds);

}  // namespace lowbit::bench
