#include "data/image/mixup.h"

#include <algorithm>
#include <cmath>

#include "tensor/core/error.h"
#include "tensor/core/thread_pool.h"

namespace lowbit {

namespace {

Mix cut(const Box& b, int height, int width) {
  const double share = double(b.height) * b.width / (double(height) * width);
  return {float(1 - share), float(share), true, b};
}

/// Sides drawn between two shares of the image's.
Mix cutmix_between(const std::array<double, 2>& minmax, int height, int width, Draws& draws) {
  const int h = int(draws.integer(int(height * minmax[0]), int(height * minmax[1]) - 1));
  const int w = int(draws.integer(int(width * minmax[0]), int(width * minmax[1]) - 1));
  const int top = int(draws.integer(0, height - h - 1)), left = int(draws.integer(0, width - w - 1));
  return cut({top, left, h, w}, height, width);
}

/// The draws of `n` decisions in timm's order: all of a kind before the next kind.
struct Decisions {
  std::vector<bool> cutmix;
  std::vector<double> lam;
};

Decisions decide_each(const MixupOptions& o, int64_t n, double cutmix_alpha, Draws& draws) {
  Decisions d{std::vector<bool>(size_t(n), o.mixup <= 0), std::vector<double>(size_t(n))};
  const bool both = o.mixup > 0 && cutmix_alpha > 0;
  if (both)
    for (size_t i = 0; i < d.cutmix.size(); ++i) d.cutmix[i] = draws.chance(o.switch_probability);
  if (cutmix_alpha > 0)
    for (size_t i = 0; i < d.lam.size(); ++i) {
      const double lam = draws.beta(cutmix_alpha);
      if (d.cutmix[i]) d.lam[i] = lam;
    }
  if (o.mixup > 0)
    for (size_t i = 0; i < d.lam.size(); ++i) {
      const double lam = draws.beta(o.mixup);
      if (!d.cutmix[i]) d.lam[i] = lam;
    }
  for (double& lam : d.lam)
    if (!draws.chance(o.probability)) lam = 1;
  return d;
}

Mix mix_of(const MixupOptions& o, double lam, bool cutmix, int height, int width, Draws& draws) {
  if (lam == 1) return {};
  if (!cutmix) return {float(lam), float(1 - lam), false, {}};
  return o.minmax ? cutmix_between(*o.minmax, height, width, draws) : cutmix_box(lam, height, width, draws);
}

inline float mixed(float a, float b, const Mix& m) { return a * m.lam + b * m.rest; }
inline uint8_t mixed(uint8_t a, uint8_t b, const Mix& m) {
  return uint8_t(std::nearbyint(float(a) * m.lam + float(b) * m.rest));
}

/// Rows of an image and of its partner, each with its own mix, from the unmixed values.
template <class T>
void mix_pair(const Mix& mi, const Mix& mj, int64_t channels, int64_t height, int64_t width, T* a, T* b) {
  const auto value = [](const Mix& m, int64_t y, int64_t x, T own, T other) {
    if (m.identity()) return own;
    if (!m.cut) return mixed(own, other, m);
    const bool inside =
        y >= m.box.top && y < m.box.top + m.box.height && x >= m.box.left && x < m.box.left + m.box.width;
    return inside ? other : own;
  };
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t y = 0; y < height; ++y)
      for (int64_t x = 0; x < width; ++x, ++a, ++b) {
        const T p = *a, q = *b;
        *a = value(mi, y, x, p, q);
        *b = value(mj, y, x, q, p);
      }
}

template <class T>
void apply_typed(const std::vector<Mix>& plan, Tensor& images) {
  const int64_t n = images.size(0), c = images.size(1), h = images.size(2), w = images.size(3),
                each = c * h * w;
  T* data = images.data<T>();
  parallel_for((n + 1) / 2, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Mix &mi = plan[size_t(i)], &mj = plan[size_t(n - 1 - i)];
      if (mi.identity() && mj.identity()) continue;
      mix_pair(mi, mj, c, h, w, data + i * each, data + (n - 1 - i) * each);
    }
  });
}

}  // namespace

Mix cutmix_box(double lam, int height, int width, Draws& draws) {
  const double ratio = std::sqrt(1 - lam);
  const int h = int(height * ratio), w = int(width * ratio);
  const int cy = int(draws.integer(0, height - 1)), cx = int(draws.integer(0, width - 1));
  const int top = std::clamp(cy - h / 2, 0, height), bottom = std::clamp(cy + h / 2, 0, height);
  const int left = std::clamp(cx - w / 2, 0, width), right = std::clamp(cx + w / 2, 0, width);
  return cut({top, left, bottom - top, right - left}, height, width);
}

std::vector<Mix> plan_mixup(const MixupOptions& o, int64_t n, int height, int width, Draws& draws) {
  using Mode = MixupOptions::Mode;
  const double cutmix_alpha = o.minmax ? 1 : o.cutmix;
  std::vector<Mix> plan(static_cast<size_t>(n));
  if (!o.on()) return plan;
  if (o.mode == Mode::batch) {
    if (!draws.chance(o.probability)) return plan;
    bool cutmix = o.mixup <= 0;
    if (o.mixup > 0 && cutmix_alpha > 0) cutmix = draws.chance(o.switch_probability);
    const double lam = draws.beta(cutmix ? cutmix_alpha : o.mixup);
    std::fill(plan.begin(), plan.end(), mix_of(o, lam, cutmix, height, width, draws));
    return plan;
  }
  const int64_t decisions = o.mode == Mode::elem ? n : n / 2;
  const Decisions d = decide_each(o, decisions, cutmix_alpha, draws);
  for (int64_t i = 0; i < decisions; ++i) {
    // timm keeps these λ in float32, and 1 − λ is formed from that.
    const float lam = float(d.lam[size_t(i)]);
    Mix m = mix_of(o, lam, d.cutmix[size_t(i)], height, width, draws);
    if (!m.cut) m.rest = 1 - lam;
    plan[size_t(i)] = m;
    if (o.mode == Mode::pair) plan[size_t(n - 1 - i)] = m;
  }
  return plan;
}

void apply_mixup(const std::vector<Mix>& plan, Tensor& images) {
  LOWBIT_CHECK(images.ndim() == 4 && images.contiguous() && int64_t(plan.size()) == images.size(0), shape,
               "mixup", "images must be packed [B, C, H, W] with a mix for each (got ", images.shape().str(),
               ", ", plan.size(), ")");
  if (images.dtype() == DType::u8)
    apply_typed<uint8_t>(plan, images);
  else
    apply_typed<float>(plan, images);
}

Tensor mixup_targets(const std::vector<Mix>& plan, const Tensor& labels, int64_t classes, double smoothing) {
  const int64_t n = int64_t(plan.size());
  LOWBIT_CHECK(labels.numel() == n, shape, "mixup", "one label for each image (got ", labels.shape().str(),
               ", ", n, ")");
  const std::vector<int64_t> y = labels.to_vector<int64_t>();
  const float off = float(smoothing / double(classes)),
              on = float(1 - smoothing + smoothing / double(classes));
  Tensor t = Tensor::empty({n, classes});
  float* p = t.data<float>();
  for (int64_t i = 0; i < n; ++i)
    for (int64_t k = 0; k < classes; ++k) {
      const Mix& m = plan[size_t(i)];
      const float own = y[size_t(i)] == k ? on : off, other = y[size_t(n - 1 - i)] == k ? on : off;
      p[i * classes + k] = own * m.lam + other * m.rest;
    }
  return t;
}

}  // namespace lowbit
