#include "train/optim/clip.h"

#include <algorithm>
#include <cmath>

#include "tensor/core/thread_pool.h"
#include "tensor/engine/reduce.h"

namespace lowbit {
namespace {

float sum_squares(const float* x, int64_t n) {
  return cpu::sum(n, [x](int64_t i) { return x[i] * x[i]; });
}

template <class F>
void for_each_gradient(ParameterArena& a, size_t count, F&& f) {
  float* g = a.grads().flat().data<float>();
  for (size_t i = 0; i < count; ++i)
    if (a.has_grad(i)) f(a.layout().slices[i], g + a.layout().slices[i].offset);
  a.grads().touch();
}

template <class F>
void map_in_place(float* g, int64_t n, F&& f) {
  parallel_for(n, 16384, [&](int64_t b, int64_t e) {
    for (int64_t i = b; i < e; ++i) g[i] = f(g[i]);
  });
}

void clip_adaptively(ParameterArena& a, float limit, int skip_last) {
  const float* values = std::as_const(a).values().flat().data<float>();
  const size_t count = a.size() - std::min(a.size(), size_t(skip_last));
  for_each_gradient(a, count, [&](const ArenaSlice& s, float* g) {
    const int64_t units = s.shape.ndim() <= 1 ? 1 : s.shape[0], n = units ? s.numel / units : 0;
    const float* w = values + s.offset;
    for (int64_t u = 0; u < units; ++u) {
      const float bound = std::max(std::sqrt(sum_squares(w + u * n, n)), 1e-3f) * limit;
      const float norm = std::sqrt(sum_squares(g + u * n, n));
      if (norm < bound) continue;
      const float scale = bound / std::max(norm, 1e-6f);
      for (int64_t i = 0; i < n; ++i) g[u * n + i] *= scale;
    }
  });
}

}  // namespace

ClipMode clip_mode(const std::string& name) {
  if (name == "norm") return ClipMode::norm;
  if (name == "value") return ClipMode::value;
  LOWBIT_CHECK(name == "agc", usage, "clip", "mode must be norm, value or agc (got '", name, "')");
  return ClipMode::agc;
}

double gradient_norm(const ParameterArena& a) {
  const float* g = a.grads().flat().data<float>();
  double total = 0;
  for (size_t i = 0; i < a.size(); ++i)
    if (a.has_grad(i))
      total += double(sum_squares(g + a.layout().slices[i].offset, a.layout().slices[i].numel));
  return std::sqrt(total);
}

double clip_gradients(ParameterArena& a, ClipMode mode, double limit, int skip_last) {
  if (mode == ClipMode::norm) {
    const double norm = gradient_norm(a), scale = limit / (norm + 1e-6);
    if (scale < 1)
      for_each_gradient(a, a.size(), [&](const ArenaSlice& s, float* g) {
        map_in_place(g, s.numel, [k = float(scale)](float x) { return x * k; });
      });
    return norm;
  }
  if (mode == ClipMode::agc) {
    clip_adaptively(a, float(limit), skip_last);
  } else {
    for_each_gradient(a, a.size(), [&](const ArenaSlice& s, float* g) {
      map_in_place(g, s.numel, [k = float(limit)](float x) { return std::clamp(x, -k, k); });
    });
  }
  return 0;
}

}  // namespace lowbit
