#include "train/optim/clip.h"

#include <algorithm>
#include <cmath>

#include "autograd/ops/pointwise.h"
#include "train/optim/update.h"

namespace lowbit {
namespace {

template <class F>
void for_each_gradient(ParameterArena& a, size_t count, F&& f) {
  for (size_t i = 0; i < count; ++i)
    if (a.has_grad(i)) f(i, a.grads().window(i).view());
  a.grads().touch();
}

void clip_adaptively(ParameterArena& a, float limit, int skip_last) {
  for_each_gradient(a, a.size() - std::min(a.size(), size_t(skip_last)), [&](size_t i, const View& g) {
    const ArenaSlice& s = a.layout().slices[i];
    const int64_t units = s.shape.ndim() <= 1 ? 1 : s.shape[0], n = units ? s.numel / units : 0;
    const Tensor& w = a.values().window(i);
    adaptive_clip({g.as<float>(), w.data_const<float>(), units, n, limit}, w.device());
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
  const Device d = a.grads().flat().device();
  int64_t longest = 0;
  for (const ArenaSlice& s : a.layout().slices) longest = std::max(longest, s.numel);
  Tensor squares = Tensor::zeros({int64_t(a.size())}, DType::f32, d);
  Tensor work = d.is_cuda() ? Tensor::empty({square_sum_workspace(longest)}, DType::f32, d) : Tensor{};
  for (size_t i = 0; i < a.size(); ++i)
    if (a.has_grad(i))
      square_sum({squares.data<float>() + i, a.grads().window(i).data_const<float>(),
                  work.mutable_view().as<float>(), a.layout().slices[i].numel},
                 d);
  double total = 0;
  for (const float s : squares.to_vector<float>()) total += double(s);
  return std::sqrt(total);
}

double clip_gradients(ParameterArena& a, ClipMode mode, double limit, int skip_last) {
  const Device d = a.grads().flat().device();
  double norm = 0;
  if (mode == ClipMode::norm) {
    norm = gradient_norm(a);
    if (const double factor = limit / (norm + 1e-6); factor < 1)
      for_each_gradient(a, a.size(), [&](size_t, const View& g) { scale_fwd({{factor}, g, g}, d); });
  } else if (mode == ClipMode::value) {
    for_each_gradient(a, a.size(), [&](size_t, const View& g) { clamp_fwd({{-limit, limit}, g, g}, d); });
  } else {
    clip_adaptively(a, float(limit), skip_last);
  }
  return norm;
}

}  // namespace lowbit
