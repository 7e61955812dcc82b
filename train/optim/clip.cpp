#include "train/optim/clip.h"

#include <algorithm>
#include <vector>

#include "autograd/ops/pointwise.h"
#include "tensor/core/constant.h"
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

/// The gradients that are there, cut into chunks. The pattern hardly ever changes, so the tables are
/// constants.
struct Norm {
  explicit Norm(const ParameterArena& a) {
    const Device d = a.grads().flat().device();
    std::vector<int64_t> chunks, first{0};
    for (size_t s = 0; s < a.size(); ++s) {
      const ArenaSlice& slice = a.layout().slices[s];
      const int64_t end = slice.offset + slice.numel;
      for (int64_t b = slice.offset; b < end && a.has_grad(s); b += kChunk)
        chunks.insert(chunks.end(), {int64_t(s), b, std::min(b + kChunk, end)});
      first.push_back(int64_t(chunks.size()) / 3);
    }
    table = constant(std::span<const int64_t>(chunks), {int64_t(chunks.size())}, d);
    index = constant(std::span<const int64_t>(first), {int64_t(first.size())}, d);
    rows = {table.data_const<int64_t>(), first.back(), index.data_const<int64_t>(), int64_t(a.size())};
  }
  /// f64 [2]: the norm, and the factor that brings it down to the limit.
  Tensor run(const ParameterArena& a, double limit) const {
    const Tensor& g = a.grads().flat();
    Tensor norm = Tensor::empty({2}, DType::f64, g.device());
    Tensor work = Tensor::empty({rows.count + rows.slices}, DType::f32, g.device());
    gradient_norm_kernel({rows, g.data_const<float>(), work.data<float>(), norm.data<double>(), limit},
                         g.device());
    return norm;
  }
  Tensor table, index;
  NormRows rows;
};

}  // namespace

ClipMode clip_mode(const std::string& name) {
  if (name == "norm") return ClipMode::norm;
  if (name == "value") return ClipMode::value;
  LOWBIT_CHECK(name == "agc", usage, "clip", "mode must be norm, value or agc (got '", name, "')");
  return ClipMode::agc;
}

Tensor gradient_norm(const ParameterArena& a) { return Norm(a).run(a, 0); }

void clip_gradients(ParameterArena& a, ClipMode mode, double limit, int skip_last) {
  const Device d = a.grads().flat().device();
  if (mode == ClipMode::norm) {
    const Norm n(a);
    const Tensor norm = n.run(a, limit);
    norm_clip({n.rows, a.grads().flat().data<float>(), norm.data_const<double>()}, d);
    a.grads().touch();
  } else if (mode == ClipMode::value) {
    for_each_gradient(a, a.size(), [&](size_t, const View& g) { clamp_fwd({{-limit, limit}, g, g}, d); });
  } else {
    clip_adaptively(a, float(limit), skip_last);
  }
}

}  // namespace lowbit
