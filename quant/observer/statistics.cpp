#include "quant/observer/statistics.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tensor/engine/reduce.h"

namespace lowbit {
namespace {

constexpr int kMaxIterations = 1000;

Tensor host_floats(const Tensor& x) { return x.to(Device{}).cast(DType::f32).packed(); }

float level_of(float x, float scale, float offset, Levels l) {
  using Ste = UniformSte<MaskRule::clip_then_round>;
  return Ste::level(x, QParam<float>{scale, offset, float(l.lo), float(l.hi)}, RoundEven{}, 0);
}

bool settled(float now, float before) { return !(std::fabs((now - before) / now) >= 1e-5f); }

void check_finite(float v, const char* what, std::string_view name) {
  LOWBIT_CHECK(std::isfinite(v), numeric, name, "the ", what, " that fits the values must be finite (got ", v,
               ")");
}

}  // namespace

float sum_abs(const Tensor& x) {
  const Tensor t = host_floats(x);
  const float* v = t.data_const<float>();
  return cpu::sum(t.numel(), [v](int64_t i) { return std::fabs(v[i]); });
}

Moments moments(const Tensor& x) {
  const Tensor t = host_floats(x);
  const float* v = t.data_const<float>();
  const int64_t n = t.numel();
  if (n == 0) return {};
  const float mean = cpu::sum(n, [v](int64_t i) { return v[i]; }) / float(n);
  const float square = cpu::sum(n, [v, mean](int64_t i) {
    const float d = v[i] - mean;
    return d * d;
  });
  return {mean, std::sqrt(double(square) / double(n))};
}

Extrema extrema(const Tensor& x, int axis, int64_t groups) {
  const Tensor t = host_floats(x);
  const float* v = t.data_const<float>();
  int64_t outer = 1, inner = t.numel();
  if (axis != Coded::kPerTensor) {
    const int at = t.ndim() + axis;
    for (int d = 0; d < at; ++d) outer *= t.size(d);
    inner = outer * groups > 0 ? t.numel() / (outer * groups) : 0;
  }
  Extrema e{std::vector<float>(size_t(groups), std::numeric_limits<float>::infinity()),
            std::vector<float>(size_t(groups), -std::numeric_limits<float>::infinity())};
  for (int64_t o = 0; o < outer; ++o)
    for (int64_t g = 0; g < groups; ++g) {
      const float* run = v + (o * groups + g) * inner;
      float lo = e.lo[size_t(g)], hi = e.hi[size_t(g)];
      for (int64_t i = 0; i < inner; ++i) lo = std::min(lo, run[i]), hi = std::max(hi, run[i]);
      e.lo[size_t(g)] = lo, e.hi[size_t(g)] = hi;
    }
  return e;
}

ScaleFit fit_scale(const Tensor& x, Levels l, std::string_view name) {
  const Tensor t = host_floats(x);
  const float* v = t.data_const<float>();
  const Extrema e = extrema(t);
  ScaleFit fit;
  float before = -1, a = std::max(std::fabs(e.lo[0]), std::fabs(e.hi[0])) / float(l.hi);
  check_finite(a, "scale", name);
  if (a == 0) return fit;
  while (!settled(a, before) && fit.iterations < kMaxIterations) {
    const auto s = cpu::sum(t.numel(), [v, a, l](int64_t i) {
      const float q = level_of(v[i], a, 0, l);
      return Pack<float, 2>{{v[i] * q, q * q}};
    });
    before = a;
    a = s[0] / s[1];
    check_finite(a, "scale", name);
    ++fit.iterations;
  }
  fit.scale = a;
  return fit;
}

ScaleFit fit_scale_and_offset(const Tensor& x, Levels l, std::string_view name) {
  const Tensor t = host_floats(x);
  const float* v = t.data_const<float>();
  const int64_t n = t.numel();
  const Extrema e = extrema(t);
  ScaleFit fit;
  float b = e.lo[0], before = -1;
  float a = std::max(std::fabs(e.lo[0] - b), std::fabs(e.hi[0] - b)) / float(l.hi);
  check_finite(a, "scale", name);
  fit.offset = b;
  if (a == 0) return fit;
  while (!settled(a, before) && fit.iterations < kMaxIterations) {
    const auto s = cpu::sum(n, [v, a, b, l](int64_t i) {
      const float q = level_of(v[i], a, b, l);
      return Pack<float, 3>{{(v[i] - b) * q, q * q, v[i] - a * q}};
    });
    before = a;
    a = s[0] / s[1];
    b = s[2] / float(n);
    check_finite(a, "scale", name);
    ++fit.iterations;
  }
  fit.scale = a, fit.offset = b;
  return fit;
}

}  // namespace lowbit
