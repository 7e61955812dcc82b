#include "data/image/erasing.h"

#include <cmath>

namespace lowbit {

namespace {

void erase(const ErasingOptions& o, const Box& b, const RngKey& noise, int channels, int height, int width,
           float* image) {
  for (int c = 0; c < channels; ++c)
    for (int y = b.top; y < b.top + b.height; ++y)
      for (int x = b.left; x < b.left + b.width; ++x) {
        const int64_t i = (int64_t(c) * height + y) * width + x;
        switch (o.mode) {
          case ErasingOptions::Mode::constant:
            image[i] = 0;
            break;
          case ErasingOptions::Mode::channel:
            image[i] = philox_normal(noise, uint64_t(c));
            break;
          case ErasingOptions::Mode::pixel:
            image[i] = philox_normal(noise, uint64_t(i));
            break;
        }
      }
}

}  // namespace

std::vector<Box> random_erasing(const ErasingOptions& o, Draws& draws, const RngKey& noise, int channels,
                                int height, int width, float* image) {
  std::vector<Box> boxes;
  if (o.probability <= 0 || !draws.chance(o.probability)) return boxes;
  const double area = double(height) * width, low = std::log(o.ratio[0]), high = std::log(o.ratio[1]);
  for (int n = 0; n < o.count; ++n)
    for (int attempt = 0; attempt < 10; ++attempt) {
      const double target = draws.uniform(o.area[0], o.area[1]) * area / o.count;
      const double aspect = std::exp(draws.uniform(low, high));
      const int h = int(std::nearbyint(std::sqrt(target * aspect)));
      const int w = int(std::nearbyint(std::sqrt(target / aspect)));
      if (h >= height || w >= width) continue;
      const int top = int(draws.integer(0, height - h)), left = int(draws.integer(0, width - w));
      boxes.push_back({top, left, h, w});
      erase(o, boxes.back(), noise, channels, height, width, image);
      break;
    }
  return boxes;
}

}  // namespace lowbit
