#include "data/image/augment_ops.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numbers>
#include <utility>

namespace lowbit {

namespace {

using Table = std::array<uint8_t, 256>;

template <class F>
Table table_of(F f) {
  Table t;
  for (int i = 0; i < 256; ++i) t[size_t(i)] = uint8_t(f(i));
  return t;
}

void recolor(Image& image, const std::array<const Table*, 3>& tables) {
  uint8_t* p = image.data();
  for (size_t i = 0; i < image.bytes(); i += 3)
    for (size_t c = 0; c < 3; ++c) p[i + c] = (*tables[c])[p[i + c]];
}
void recolor(Image& image, const Table& t) { recolor(image, {&t, &t, &t}); }

using Histogram = std::array<int64_t, 256>;

/// table(histogram) of each channel.
template <class F>
void recolor_by_histogram(Image& image, F table) {
  std::array<Histogram, 3> h{};
  const uint8_t* p = image.data();
  for (size_t i = 0; i < image.bytes(); i += 3)
    for (size_t c = 0; c < 3; ++c) ++h[c][p[i + c]];
  const Table r = table(h[0]), g = table(h[1]), b = table(h[2]);
  recolor(image, {&r, &g, &b});
}

int luma(const uint8_t* p) { return (p[0] * 19595 + p[1] * 38470 + p[2] * 7471 + 0x8000) >> 16; }

uint8_t blend(int degenerate, int x, float factor) {
  const float v = float(degenerate) + factor * float(x - degenerate);
  return v <= 0 ? 0 : v >= 255 ? 255 : uint8_t(v);
}

void smooth(const Image& image, Image& out) {
  const int h = image.height(), w = image.width();
  std::memcpy(out.data(), image.data(), image.bytes());
  const int64_t row = image.stride();
  for (int y = 1; y + 1 < h; ++y)
    for (int64_t i = 3; i < 3 * int64_t(w - 1); ++i) {
      const uint8_t* p = image.data() + y * row + i;
      int sum = 4 * p[0];
      for (const int64_t r : {-row, int64_t(0), row}) sum += p[r - 3] + p[r] + p[r + 3];
      out.row(y)[i] = uint8_t((2 * sum + 13) / 26);
    }
}

double linear_between(double a, double b, double t) { return a + (b - a) * t; }

double cubic_between(const double (&p)[4], double t) {
  const double b = -p[0] + p[2], c = 2 * (p[0] - p[1]) + p[2] - p[3], d = -p[0] + p[1] - p[2] + p[3];
  return p[1] + t * (b + t * (c + t * d));
}

/// The three channels at (x, y), counted in pixel centres; taps beyond the edge repeat it.
void sample(const Image& image, Filter filter, double x, double y, uint8_t* out) {
  const int left = int(std::floor(x)), top = int(std::floor(y));
  const double dx = x - left, dy = y - top;
  const auto pixel = [&](int column, int line) {
    return image.data() + std::clamp(line, 0, image.height() - 1) * image.stride() +
           3 * std::clamp(column, 0, image.width() - 1);
  };
  for (int c = 0; c < 3; ++c) {
    if (filter == Filter::bilinear) {
      const auto line = [&](int l) { return linear_between(pixel(left, l)[c], pixel(left + 1, l)[c], dx); };
      out[c] = uint8_t(linear_between(line(top), line(top + 1), dy));
      continue;
    }
    double lines[4];
    for (int l = 0; l < 4; ++l) {
      double p[4];
      for (int k = 0; k < 4; ++k) p[k] = pixel(left - 1 + k, top - 1 + l)[c];
      lines[l] = cubic_between(p, dx);
    }
    out[c] = uint8_t(std::clamp(cubic_between(lines, dy), 0.0, 255.0));
  }
}

/// The decimal number with 15 digits behind the point that is nearest, as the rotation matrices of Pillow are
/// rounded.
double round_15_digits(double x) {
  char text[40];
  std::snprintf(text, sizeof text, "%.15f", x);
  return std::strtod(text, nullptr);
}

}  // namespace

void auto_contrast(Image& image) {
  recolor_by_histogram(image, [](const Histogram& h) {
    int lo = 0, hi = 255;
    while (lo < 255 && h[size_t(lo)] == 0) ++lo;
    while (hi > 0 && h[size_t(hi)] == 0) --hi;
    if (hi <= lo) return table_of([](int i) { return i; });
    const double s = 255.0 / (hi - lo), offset = -lo * s;
    return table_of([&](int i) { return std::clamp(int(i * s + offset), 0, 255); });
  });
}

void equalize(Image& image) {
  recolor_by_histogram(image, [](const Histogram& h) {
    int64_t pixels = 0, last = 0, used = 0;
    for (const int64_t n : h)
      if (n > 0) pixels += n, last = n, ++used;
    const int64_t step = (pixels - last) / 255;
    if (used <= 1 || step == 0) return table_of([](int i) { return i; });
    int64_t n = step / 2;
    return table_of([&](int i) { return std::min<int64_t>(255, std::exchange(n, n + h[size_t(i)]) / step); });
  });
}

void invert(Image& image) {
  recolor(image, table_of([](int i) { return 255 - i; }));
}

void posterize(Image& image, int bits) {
  if (bits >= 8) return;
  recolor(image, table_of([&](int i) { return i & ~((1 << (8 - bits)) - 1); }));
}

void solarize(Image& image, int threshold) {
  recolor(image, table_of([&](int i) { return i < threshold ? i : 255 - i; }));
}

void solarize_add(Image& image, int add) {
  recolor(image, table_of([&](int i) { return i < 128 ? std::min(255, i + add) : i; }));
}

void enhance(Image& image, Enhancement kind, double factor, Image& scratch) {
  const float f = float(factor);
  uint8_t* p = image.data();
  const size_t bytes = image.bytes();
  if (kind == Enhancement::sharpness) {
    scratch.reshape(image.height(), image.width());
    smooth(image, scratch);
    for (size_t i = 0; i < bytes; ++i) p[i] = blend(scratch.data()[i], p[i], f);
    return;
  }
  int constant = 0;
  if (kind == Enhancement::contrast) {
    int64_t sum = 0;
    for (size_t i = 0; i < bytes; i += 3) sum += luma(p + i);
    constant = int(double(sum) / double(bytes / 3) + 0.5);
  }
  for (size_t i = 0; i < bytes; i += 3) {
    const int d = kind == Enhancement::color ? luma(p + i) : constant;
    for (size_t c = 0; c < 3; ++c) p[i + c] = blend(d, p[i + c], f);
  }
}

void affine(Image& image, const std::array<double, 6>& m, Filter filter, Rgb fill, Image& scratch) {
  const int h = image.height(), w = image.width();
  scratch.reshape(h, w);
  for (int y = 0; y < h; ++y)
    for (int x = 0; x < w; ++x) {
      const double u = m[0] * (x + 0.5) + m[1] * (y + 0.5) + m[2];
      const double v = m[3] * (x + 0.5) + m[4] * (y + 0.5) + m[5];
      uint8_t* out = scratch.row(y) + 3 * x;
      if (u >= 0 && v >= 0 && u < w && v < h)
        sample(image, filter, u - 0.5, v - 0.5, out);
      else
        std::copy(fill.begin(), fill.end(), out);
    }
  std::swap(image, scratch);
}

void rotate(Image& image, double degrees, Filter filter, Rgb fill, Image& scratch) {
  const double turn = std::fmod(std::fmod(degrees, 360.0) + 360.0, 360.0);
  if (turn == 0) return;
  const double angle = -(turn * (std::numbers::pi / 180)), x = image.width() / 2.0, y = image.height() / 2.0;
  const double c = round_15_digits(std::cos(angle)), s = round_15_digits(std::sin(angle)), t = -s;
  affine(image, {c, s, c * -x + s * -y + x, t, c, t * -x + c * -y + y}, filter, fill, scratch);
}

}  // namespace lowbit
