#pragma once
// The weights of a resampled axis, written once for both devices.

#include <cstdint>

#include "tensor/hd/macros.h"

namespace lowbit {

/// Triangle, or cubic with a = -0.5; both widened by the scale when shrinking (antialiasing).
enum class Filter : uint8_t { bilinear, bicubic };

inline constexpr int kWeightBits = 22;  ///< 32 - 8 bits of a pixel - 2 bits for the overshoot of the cubic

/// A pixel from the sum of weights times pixels, which begins at one half.
inline constexpr int32_t kWeightHalf = 1 << (kWeightBits - 1);
LOWBIT_HD uint8_t weighted_pixel(int32_t sum) {
  const int32_t v = sum >> kWeightBits;
  return uint8_t(v < 0 ? 0 : v > 255 ? 255 : v);
}

/// An axis resized from `in` to `out` elements. Output i, with s = in/out, f = max(s, 1), c = (i + ½)s, S = f
/// (bilinear) or 2f (bicubic), reads the inputs max(⌊c − S + ½⌋, 0) … min(⌊c + S + ½⌋, in) − 1 with the
/// weights k((x − c + ½)/f), normalised in double and rounded half away from zero to 2^-22. Source  Pillow,
/// src/libImaging/Resample.c (precompute_coeffs, normalize_coeffs_8bpc)
struct ResizeAxis {
  int in;
  Filter filter;
  double scale, support, per_input;

  LOWBIT_HD ResizeAxis(int from, int to, Filter f) : in(from), filter(f), scale(double(from) / to) {
    const double widen = scale > 1.0 ? scale : 1.0;
    support = (f == Filter::bilinear ? 1.0 : 2.0) * widen;
    per_input = 1.0 / widen;
  }
  LOWBIT_HD double centre(int i) const { return (i + 0.5) * scale; }
  LOWBIT_HD int first(double c) const {
    const int lo = int(c - support + 0.5);
    return lo > 0 ? lo : 0;
  }
  LOWBIT_HD int end(double c) const {
    const int hi = int(c + support + 0.5);
    return hi < in ? hi : in;
  }
  /// Of input x, before it is normalised.
  LOWBIT_HD double exact(int x, double c) const {
    double t = (x - c + 0.5) * per_input;
    t = t < 0 ? -t : t;
    if (filter == Filter::bilinear) return t < 1.0 ? 1.0 - t : 0.0;
    constexpr double a = -0.5;
    if (t < 1.0) return ((a + 2.0) * t - (a + 3.0)) * t * t + 1;
    if (t < 2.0) return (((t - 5) * t + 8) * t - 4) * a;
    return 0.0;
  }
  LOWBIT_HD static int32_t rounded(double w, double total) {
    if (total != 0.0) w /= total;
    return int32_t(w < 0 ? -0.5 + w * (1 << kWeightBits) : 0.5 + w * (1 << kWeightBits));
  }
};

}  // namespace lowbit
