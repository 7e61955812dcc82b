#pragma once
// Scalar maths written once for g++ and the CUDA compiler: branch-free float functions built only from + − ×
// ÷ √ fma, selections and bit casts, so that they vectorise and give the same bits on every device. Errors
// are at most 2 ulp over the whole range (normal_cdf: 4 ulp in its lower tail), see
// tests/tensor/hd/math_test.cpp. Denormals count as zero (docs/numerics.md). The double overloads serve
// gradient checks on the CPU and forward to libm.
//
//   template <class T> LOWBIT_HD T fwd(T x) { return x * math::normal_cdf(x); }
//
// The polynomials are minimax fits of relative error, coefficients rounded to float one after the other.

#include <cmath>
#include <cstdint>

#include "tensor/hd/half.h"
#include "tensor/hd/macros.h"

namespace lowbit::math {

// ---- exact operations
// --------------------------------------------------------------------------------------------

LOWBIT_HD float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
LOWBIT_HD double fma(double a, double b, double c) { return ::fma(a, b, c); }
LOWBIT_HD float sqrt(float x) { return ::sqrtf(x); }
LOWBIT_HD double sqrt(double x) { return ::sqrt(x); }
LOWBIT_HD float rint(float x) { return ::rintf(x); }  ///< half to even
LOWBIT_HD double rint(double x) { return ::rint(x); }
LOWBIT_HD float floor(float x) { return ::floorf(x); }
LOWBIT_HD double floor(double x) { return ::floor(x); }
LOWBIT_HD float abs(float x) { return bits_float(float_bits(x) & 0x7fffffffu); }
LOWBIT_HD double abs(double x) { return ::fabs(x); }
/// Magnitude of `m`, sign of `s`.
LOWBIT_HD float copysign(float m, float s) {
  return bits_float((float_bits(m) & 0x7fffffffu) | (float_bits(s) & 0x80000000u));
}
LOWBIT_HD double copysign(double m, double s) { return ::copysign(m, s); }
/// A NaN in the first argument passes through, like std::min and std::max.
template <class T>
LOWBIT_HD T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
LOWBIT_HD T max(T a, T b) {
  return a < b ? b : a;
}
template <class T>
LOWBIT_HD T clamp(T x, T lo, T hi) {
  return min(max(x, lo), hi);
}
/// 1/√x, both operations correctly rounded.
template <class T>
LOWBIT_HD T rsqrt(T x) {
  return T(1) / sqrt(x);
}

// ---- exp, log
// ----------------------------------------------------------------------------------------------------

namespace detail {
/// x limited in magnitude to that of b, for x of the sign of b; x of the other sign (b negative) stays.
/// Compares bit patterns: g++ turns this, but no float comparison with a constant, into one vector
/// instruction. Loses NaN.
LOWBIT_HD float limit(float x, float b) {
  const uint32_t u = float_bits(x), v = float_bits(b);
  return bits_float(u < v ? u : v);
}

/// exp(x + low) for −150 ≤ x ≤ 89, |low| tiny. Other arguments give some number, NaN gives NaN.
LOWBIT_HD float exp_core(float x, float low = -0.0f) {
  const float shifted = fma(x, 1.44269504f, 12582912.0f);  // 1.5·2^23 rounds to an integer in the low bits
  const float n = shifted - 12582912.0f;
  float r = fma(n, -0x1.62e4p-1f, x);  // ln 2 in two parts, the first with zeros at its end
  r = fma(n, -0x1.7f7d1cp-20f, r) + low;
  float p = 0x1.6ab6b2p-10f;
  p = fma(p, r, 0x1.123d5cp-7f);
  p = fma(p, r, 0x1.55585ap-5f);
  p = fma(p, r, 0x1.55548cp-3f);
  p = fma(p, r, 0x1.fffffcp-2f);
  p = fma(p, r, 1.0f);
  p = fma(p, r, 1.0f);
  // 2^n in two factors: n goes from −216 to 128.
  const uint32_t e = float_bits(shifted) - 0x4b400000u, half = uint32_t(int32_t(e) >> 1);
  return p * bits_float((half + 127u) << 23) * bits_float((e - half + 127u) << 23);
}
}  // namespace detail

/// eˣ. Underflow gives 0, overflow infinity.
LOWBIT_HD float exp(float x) {
  const float y = detail::exp_core(detail::limit(x, -104.0f));
  return x <= 88.73f ? y : x + bits_float(0x7f800000u);  // +∞ and NaN
}
LOWBIT_HD double exp(double x) { return ::exp(x); }

/// Natural logarithm: −∞ at 0, NaN below.
LOWBIT_HD float log(float x) {
  const uint32_t bits = float_bits(x) - 0x3f3504f3u;  // √½: the mantissa m lies in [√½, √2)
  const float n = float(int32_t(bits) >> 23);
  const float f = bits_float((bits & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  float p = 7.0376836292e-2f;
  p = fma(p, f, -1.1514610310e-1f);
  p = fma(p, f, 1.1676998740e-1f);
  p = fma(p, f, -1.2420140846e-1f);
  p = fma(p, f, 1.4249322787e-1f);
  p = fma(p, f, -1.6668057665e-1f);
  p = fma(p, f, 2.0000714765e-1f);
  p = fma(p, f, -2.4999993993e-1f);
  p = fma(p, f, 3.3333331174e-1f);
  const float s = f * f;
  const float tail = fma(n, -2.12194440e-4f, fma(s, -0.5f, s * f * p));
  float y = fma(n, 0.693359375f, f + tail);
  y = x < 0x1p-126f ? -bits_float(0x7f800000u) : y;
  y = x < 0.0f ? bits_float(0x7fc00000u) : y;
  return x < bits_float(0x7f800000u) ? y : x;  // +∞ and NaN
}
LOWBIT_HD double log(double x) { return ::log(x); }

// ---- error function and the normal distribution
// ------------------------------------------------------------------

/// erf x: an odd polynomial near 0, 1 − exp(polynomial) beyond; both are evaluated (N. Juffa's two-range
/// form).
LOWBIT_HD float erf(float x) {
  const float t = abs(x), s = x * x;
  float a = -0x1.386bf4p-11f;
  a = fma(a, s, 0x1.46d836p-8f);
  a = fma(a, s, -0x1.b67bcep-6f);
  a = fma(a, s, 0x1.ce1984p-4f);
  a = fma(a, s, -0x1.8126e2p-2f);
  a = fma(a, s, 0x1.06eba6p-3f);
  a = fma(a, x, x);
  const float c = detail::limit(t, 4.0f), q = c * c;  // erf is 1 in float from 3.92 on
  float b = fma(-0x1.22p-16f, c, 0x1.91cfb2p-12f);
  b = fma(b, q, fma(-0x1.fd1438p-9f, c, 0x1.8d6342p-6f));
  b = fma(b, c, -0x1.b55cb8p-4f);
  b = fma(b, c, -0x1.450aap-1f);
  b = fma(b, c, -0x1.079d0cp-3f);
  b = fma(b, c, -c);
  b = copysign(1.0f - detail::exp_core(b), x);
  return t > 0.927734375f ? b : a;
}
LOWBIT_HD double erf(double x) { return ::erf(x); }

namespace detail {
/// exp(−x²/2), |x| limited to 15. The rounding error of the square is carried along. Loses NaN.
LOWBIT_HD float gauss(float x) {
  const float t = limit(abs(x), 15.0f), s = t * t;
  return exp_core(-0.5f * s, -0.5f * fma(t, t, -s));
}
}  // namespace detail

/// Density φ(x) = exp(−x²/2)/√2π.
LOWBIT_HD float normal_pdf(float x) {
  const float g = detail::gauss(x), v = fma(g, 0x1.988454p-2f, g * -0x1.857936p-27f);  // 1/√2π in two parts
  return x == x ? v : x;
}
LOWBIT_HD double normal_pdf(double x) { return 0.39894228040143267794 * ::exp(-0.5 * x * x); }

/// Φ(x), accurate relative to itself in the lower tail too: ½ − x·P(x²) near 0, exp(−x²/2)·Q(1/(|x|+2))
/// beyond. Shares its exponential with normal_pdf of the same argument.
LOWBIT_HD float normal_cdf(float x) {
  const float t = abs(x), s = t * t;
  float a = 0x1.d51c8p-14f;
  a = fma(a, s, -0x1.37f78p-10f);
  a = fma(a, s, 0x1.46de56p-7f);
  a = fma(a, s, -0x1.10588p-4f);
  a = fma(a, s, 0x1.988454p-2f);
  a = fma(a, -t, 0.5f);
  const float c = detail::limit(t, 15.0f), d = c + 2.0f, y = 1.0f / d;
  const float dy = fma(-d, y, 1.0f) - (c - (d - 2.0f)) * y;  // relative error of y
  float b = 0x1.9509f8p+5f;
  b = fma(b, y, -0x1.d02c5ep+6f);
  b = fma(b, y, 0x1.aa3abep+6f);
  b = fma(b, y, -0x1.67721cp+5f);
  b = fma(b, y, 0x1.70f332p+2f);
  b = fma(b, y, -0x1.e449b6p-3f);
  b = fma(b, y, 0x1.497586p+0f);
  b = fma(b, y, 0x1.95fb4p-1f);
  b = fma(b, y, 0x1.98ad16p-2f);
  b = fma(b, y, -0x1.1cd4e2p-19f);
  b = fma(b, 1.4f * dy, b) * detail::gauss(x);  // 1.4 ≈ d log Q / d log y
  const float h = t > 0.66f ? b : a;
  return x > 0.0f ? 1.0f - h : h;
}
LOWBIT_HD double normal_cdf(double x) { return 0.5 * ::erfc(-x * 0.70710678118654752440); }

// ---- hyperbolic and logistic
// -------------------------------------------------------------------------------------

/// tanh x: an odd polynomial below 0.625, 1 − 2/(e²ˣ + 1) beyond.
LOWBIT_HD float tanh(float x) {
  const float t = abs(x), s = x * x;
  float a = -0x1.750ce2p-8f;
  a = fma(a, s, 0x1.51f8cep-6f);
  a = fma(a, s, -0x1.b83536p-5f);
  a = fma(a, s, 0x1.1106f6p-3f);
  a = fma(a, s, -0x1.555532p-2f);
  a = fma(a * s, t, t);
  const float b = 1.0f - 2.0f / (detail::exp_core(detail::limit(2.0f * t, 20.0f)) + 1.0f);
  return copysign(t > 0.625f ? b : a, x);
}
LOWBIT_HD double tanh(double x) { return ::tanh(x); }

/// 1/(1 + e⁻ˣ), from e^−|x| so that neither tail loses digits.
LOWBIT_HD float sigmoid(float x) {
  const float e = detail::exp_core(-detail::limit(abs(x), 104.0f));
  const float d = 1.0f + e, low = e - (d - 1.0f);  // 1 + e = d + low
  float y = (x < 0.0f ? e : 1.0f) / d;
  y = fma(-low, y, y);
  return x == x ? y : x;
}
LOWBIT_HD double sigmoid(double x) { return 1.0 / (1.0 + ::exp(-x)); }

// ---- circular, for Box–Muller
// ------------------------------------------------------------------------------------

/// sin 2πu and cos 2πu, |u| ≤ 1: the reduction to an eighth of a turn is exact.
LOWBIT_HD void sincos_2pi(float u, float& sine, float& cosine) {
  const float shifted = fma(u, 4.0f, 12582912.0f), k = shifted - 12582912.0f;
  const uint32_t quadrant = float_bits(shifted);
  const float r = fma(k, -0.25f, u), s = r * r;
  float a = -0x1.33198ep+6f;
  a = fma(a, s, 0x1.4680a4p+6f);
  a = fma(a, s, -0x1.4abc24p+5f);
  a = fma(a * s, r, r * -0x1.777a5cp-23f);  // low part of 2π
  a = fma(r, 0x1.921fb6p+2f, a);
  float b = 0x1.d47d2p+5f;
  b = fma(b, s, -0x1.55b146p+6f);
  b = fma(b, s, 0x1.03c1aep+6f);
  b = fma(b, s, -0x1.3bd3ccp+4f);
  b = fma(b, s, 1.0f);
  const float p = (quadrant & 1u) ? b : a, q = (quadrant & 1u) ? a : b;
  sine = (quadrant & 2u) ? -p : p;
  cosine = ((quadrant + 1u) & 2u) ? -q : q;
}

}  // namespace lowbit::math
