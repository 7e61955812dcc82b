#include "data/image/transforms.h"

#include <algorithm>
#include <cmath>

#include "tensor/core/error.h"

namespace lowbit {

namespace {
int round_half_even(double x) { return int(std::nearbyint(x)); }

Rgb mean_colour(const Normalization& n) {
  Rgb fill;
  for (size_t c = 0; c < 3; ++c) fill[c] = uint8_t(round_half_even(255 * n.mean[c]));
  return fill;
}
}  // namespace

Box random_resized_crop(int height, int width, const double (&scale)[2], const double (&ratio)[2],
                        Draws& draws) {
  const double area = double(height) * width, low = std::log(ratio[0]), high = std::log(ratio[1]);
  for (int attempt = 0; attempt < 10; ++attempt) {
    const double target = area * draws.uniform(scale[0], scale[1]);
    const double aspect = std::exp(draws.uniform(low, high));
    const int w = round_half_even(std::sqrt(target * aspect)),
              h = round_half_even(std::sqrt(target / aspect));
    if (w < 1 || h < 1 || w > width || h > height) continue;
    const int top = int(draws.integer(0, height - h));
    const int left = int(draws.integer(0, width - w));
    return {top, left, h, w};
  }
  const double aspect = double(width) / height;
  int h = height, w = width;
  if (aspect < ratio[0]) h = round_half_even(w / ratio[0]);
  if (aspect > ratio[1]) w = round_half_even(h * ratio[1]);
  return {(height - h) / 2, (width - w) / 2, h, w};
}

Box resized_shorter_side(int height, int width, int size) {
  if (width <= height) return {0, 0, int(int64_t(size) * height / width), size};
  return {0, 0, size, int(int64_t(size) * width / height)};
}

int center_offset(int size, int crop) {
  return size >= crop ? round_half_even((size - crop) / 2.0) : -((crop - size) / 2);
}

int resize_for_crop_pct(int size, double crop_pct) { return int(std::floor(size / crop_pct)); }

ImageTransform::ImageTransform(const TransformOptions& o) : o_(o) {
  const auto ordered = [](const double(&range)[2]) { return range[0] > 0 && range[0] <= range[1]; };
  LOWBIT_CHECK(o.size > 0 && o.size <= kMaxTransformSize, value, "transform", "size must be 1 … ",
               kMaxTransformSize, " (got ", o.size, ")");
  LOWBIT_CHECK(o.resize >= 0 && o.resize <= kMaxTransformSize && o.pad >= 0 && o.pad <= kMaxTransformSize,
               value, "transform", "resize and pad must be 0 … ", kMaxTransformSize, " (got ", o.resize, ", ",
               o.pad, ")");
  LOWBIT_CHECK(ordered(o.scale) && ordered(o.ratio), value, "transform",
               "scale and ratio must be positive ranges (got ", o.scale[0], " … ", o.scale[1], ", ",
               o.ratio[0], " … ", o.ratio[1], ")");
  for (const double p : {o.flip, o.flip_vertical})
    LOWBIT_CHECK(p >= 0 && p <= 1, value, "transform", "flip must be a probability (got ", p, ")");
}

void ImageTransform::random_crop(const ImageView& src, Filter filter, Draws& draws, Scratch& scratch,
                                 Image& out) const {
  ImageView from = src;
  if (o_.resize > 0) {
    const Box full = resized_shorter_side(src.height, src.width, o_.resize);
    LOWBIT_CHECK(int64_t(full.height) * full.width <= kMaxImagePixels, value, "random_crop",
                 "image is too narrow (got ", src.width, " x ", src.height, ", resized to ", full.width,
                 " x ", full.height, ")");
    scratch.resized.reshape(full.height, full.width);
    resize(src, filter, scratch.resize, scratch.resized);
    from = scratch.resized.view();
  }
  const int down = from.height + 2 * o_.pad - o_.size, across = from.width + 2 * o_.pad - o_.size;
  LOWBIT_CHECK(down >= 0 && across >= 0, value, "random_crop", "image must be at least ",
               o_.size - 2 * o_.pad, " pixels a side (got ", from.width, " x ", from.height, "); set resize");
  const int top = int(draws.integer(0, down)) - o_.pad;
  const int left = int(draws.integer(0, across)) - o_.pad;
  crop_reflected(from, top, left, out);
}

void ImageTransform::center_crop(const ImageView& src, Filter filter, Scratch& scratch, Image& out) const {
  const Box full = o_.resize > 0 ? resized_shorter_side(src.height, src.width, o_.resize)
                                 : Box{0, 0, src.height, src.width};
  const int top = center_offset(full.height, o_.size), left = center_offset(full.width, o_.size);
  if (top >= 0 && left >= 0) {
    return resize_window(src, full.height, full.width, top, left, filter, scratch.resize, out);
  }
  scratch.resized.reshape(std::min(full.height, o_.size), std::min(full.width, o_.size));
  resize_window(src, full.height, full.width, std::max(top, 0), std::max(left, 0), filter, scratch.resize,
                scratch.resized);
  crop_zero_padded(scratch.resized.view(), std::min(top, 0), std::min(left, 0), out);
}

Box ImageTransform::part(int height, int width, Draws& draws) const {
  if (o_.geometry != TransformOptions::Geometry::random_resized_crop) return {0, 0, height, width};
  return random_resized_crop(height, width, o_.scale, o_.ratio, draws);
}

void ImageTransform::pixels(const ImageView& src, Draws& draws, Scratch& scratch, Image& out) const {
  const Box b = part(src.height, src.width, draws);
  pixels_of_part(src.crop(b.top, b.left, b.height, b.width), draws, scratch, out);
}

Filter ImageTransform::filter(Draws& draws) const {
  using Interpolation = TransformOptions::Interpolation;
  if (o_.interpolation == Interpolation::random)
    return draws.chance(0.5) ? Filter::bilinear : Filter::bicubic;
  return o_.interpolation == Interpolation::bilinear ? Filter::bilinear : Filter::bicubic;
}

std::optional<ResizeWindow> ImageTransform::window_of_part(int height, int width, Draws& draws) const {
  using Geometry = TransformOptions::Geometry;
  if (o_.geometry == Geometry::random_crop || o_.color_jitter > 0 || o_.rand_augment) return std::nullopt;
  Box full{0, 0, o_.size, o_.size};
  if (o_.geometry == Geometry::center_crop)
    full = o_.resize > 0 ? resized_shorter_side(height, width, o_.resize) : Box{0, 0, height, width};
  const int top = center_offset(full.height, o_.size), left = center_offset(full.width, o_.size);
  if (top < 0 || left < 0 || !device_crop_fits(height, width, full.height, full.width)) return std::nullopt;
  ResizeWindow w{full.height, full.width, top, left, filter(draws), false, false};
  w.flip_horizontal = o_.flip > 0 && draws.chance(o_.flip);
  w.flip_vertical = o_.flip_vertical > 0 && draws.chance(o_.flip_vertical);
  return w;
}

void ImageTransform::pixels_of_part(const ImageView& part, Draws& draws, Scratch& scratch, Image& out) const {
  using Geometry = TransformOptions::Geometry;
  const Filter filter = this->filter(draws);
  out.reshape(o_.size, o_.size);
  switch (o_.geometry) {
    case Geometry::random_resized_crop:
      resize(part, filter, scratch.resize, out);
      break;
    case Geometry::random_crop:
      random_crop(part, filter, draws, scratch, out);
      break;
    case Geometry::center_crop:
      center_crop(part, filter, scratch, out);
      break;
  }
  if (o_.flip > 0 && draws.chance(o_.flip)) flip_horizontal(out);
  if (o_.flip_vertical > 0 && draws.chance(o_.flip_vertical)) flip_vertical(out);
  if (o_.color_jitter > 0) color_jitter(o_.color_jitter, draws, out, scratch.augmented);
  if (o_.rand_augment)
    rand_augment(*o_.rand_augment, mean_colour(o_.normalization), draws, out, scratch.augmented);
}

}  // namespace lowbit
