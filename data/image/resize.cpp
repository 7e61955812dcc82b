#include "data/image/resize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "tensor/core/error.h"

#ifdef __SSE4_1__
#include <immintrin.h>
#endif

namespace lowbit {

namespace {

// Lanes of 32-bit integers; the compiler lowers them to whatever the machine has.
typedef int32_t Lanes4 __attribute__((vector_size(16)));
typedef uint8_t Bytes16 __attribute__((vector_size(16)));

/// Four bytes, widened: R, G, B and one of the next pixel.
inline Lanes4 load_four(const uint8_t* p) {
  uint32_t word;
  std::memcpy(&word, p, 4);
#ifdef __SSE4_1__  // g++ 12 takes the general form apart
  return Lanes4(_mm_cvtepu8_epi32(_mm_cvtsi32_si128(int(word))));
#else
  return Lanes4{int32_t(p[0]), int32_t(p[1]), int32_t(p[2]), int32_t(p[3])};
#endif
}

/// The sums of one pixel as bytes 0 … 2 of a word.
inline uint32_t to_pixels(Lanes4 sum) {
  const Lanes4 zero{}, full = zero + 255;
  Lanes4 v = sum >> kWeightBits;
  v = v < zero ? zero : v;
  v = v > full ? full : v;
  const Bytes16 bytes = Bytes16(v);
  const Bytes16 packed =
      __builtin_shufflevector(bytes, bytes, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
  uint32_t word;
  std::memcpy(&word, &packed, 4);
  return word;
}

/// R rows at once: the weights are loaded once for all of them and the sums are independent. A pixel is
/// stored as four bytes, the fourth of which the next pixel overwrites; the last one of a row as three.
template <int R>
void horizontal_rows(const uint8_t* const (&src)[R], const ResizeTaps& t, int width,
                     uint8_t* const (&dst)[R]) {
  const auto pixel = [&](int x, auto store) {
    const int32_t* w = t.weight.data() + int64_t(x) * t.taps;
    const int64_t first = int64_t(t.first[size_t(x)]) * 3;
    Lanes4 sum[R];
    for (Lanes4& s : sum) s = Lanes4{} + kWeightHalf;
    for (int k = 0, n = t.count[size_t(x)]; k < n; ++k) {
      for (int r = 0; r < R; ++r) sum[r] += load_four(src[r] + first + k * 3) * w[k];
    }
    for (int r = 0; r < R; ++r) {
      const uint32_t word = to_pixels(sum[r]);
      std::memcpy(dst[r] + x * 3, &word, store);
    }
  };
  for (int x = 0; x + 1 < width; ++x) pixel(x, std::integral_constant<size_t, 4>());
  pixel(width - 1, std::integral_constant<size_t, 3>());
}

void horizontal_pass(const ImageView& src, const ResizeTaps& t, Image& out) {
  int y = 0;
  for (; y + 4 <= src.height; y += 4) {
    horizontal_rows<4>({src.row(y), src.row(y + 1), src.row(y + 2), src.row(y + 3)}, t, out.width(),
                       {out.row(y), out.row(y + 1), out.row(y + 2), out.row(y + 3)});
  }
  for (; y < src.height; ++y) horizontal_rows<1>({src.row(y)}, t, out.width(), {out.row(y)});
}

/// One output row from n input rows. `bytes` is the length of a row.
void vertical_row(const uint8_t* src, int64_t stride, const int32_t* w, int n, int64_t bytes, uint8_t* dst) {
  constexpr int kBlock = 32;
  int64_t i = 0;
  for (; i + kBlock <= bytes; i += kBlock) {
    int32_t sum[kBlock];
    std::fill_n(sum, kBlock, kWeightHalf);
    for (int k = 0; k < n; ++k) {
      const uint8_t* p = src + k * stride + i;
      for (int j = 0; j < kBlock; ++j) sum[j] += p[j] * w[k];
    }
    for (int j = 0; j < kBlock; ++j) dst[i + j] = weighted_pixel(sum[j]);
  }
  for (; i < bytes; ++i) {
    int32_t sum = kWeightHalf;
    for (int k = 0; k < n; ++k) sum += src[k * stride + i] * w[k];
    dst[i] = weighted_pixel(sum);
  }
}

void vertical_pass(const ImageView& src, int first_row, const ResizeTaps& t, Image& out) {
  for (int y = 0; y < out.height(); ++y) {
    vertical_row(src.row(t.first[size_t(y)] - first_row), src.stride, t.weight.data() + int64_t(y) * t.taps,
                 t.count[size_t(y)], out.stride(), out.row(y));
  }
}

}  // namespace

void ResizeTaps::compute(int in, int out, int begin, int size, Filter filter) {
  const ResizeAxis axis(in, out, filter);
  taps = int(std::ceil(axis.support)) * 2 + 1;
  first.resize(size_t(size));
  count.resize(size_t(size));
  weight.resize(size_t(size) * size_t(taps));
  exact.resize(size_t(taps));
  for (int i = 0; i < size; ++i) {
    const double centre = axis.centre(begin + i);
    const int lo = axis.first(centre), hi = axis.end(centre);
    double total = 0;
    for (int x = lo; x < hi; ++x) total += exact[size_t(x - lo)] = axis.exact(x, centre);
    for (int k = 0; k < hi - lo; ++k)
      weight[size_t(i) * size_t(taps) + size_t(k)] = ResizeAxis::rounded(exact[size_t(k)], total);
    first[size_t(i)] = lo;
    count[size_t(i)] = hi - lo;
  }
}

void resize_window(const ImageView& src, int full_height, int full_width, int top, int left, Filter filter,
                   ResizeScratch& scratch, Image& out) {
  LOWBIT_CHECK(src.height > 0 && src.width > 0 && top >= 0 && left >= 0 &&
                   top + out.height() <= full_height && left + out.width() <= full_width,
               value, "resize", "window must lie inside the resized image (got ", src.width, " x ",
               src.height, " -> ", full_width, " x ", full_height, ", window ", out.width(), " x ",
               out.height(), " at ", left, ", ", top, ")");
  const bool across = full_width != src.width, down = full_height != src.height;
  int row_begin = top, row_end = top + out.height();
  if (down) {
    ResizeTaps& v = scratch.vertical;
    v.compute(src.height, full_height, top, out.height(), filter);
    row_begin = v.first.front();
    row_end = v.first.back() + v.count.back();
  }
  ImageView rows = src.crop(row_begin, 0, row_end - row_begin, src.width);
  if (across) {
    scratch.horizontal.compute(src.width, full_width, left, out.width(), filter);
    Image& target = down ? scratch.rows : out;
    target.reshape(rows.height, out.width());
    horizontal_pass(rows, scratch.horizontal, target);
    rows = target.view();
  } else {
    rows = rows.crop(0, left, rows.height, out.width());
  }
  if (down) {
    vertical_pass(rows, row_begin, scratch.vertical, out);
  } else if (!across) {
    for (int y = 0; y < out.height(); ++y) std::memcpy(out.row(y), rows.row(y), size_t(out.stride()));
  }
}

void crop_zero_padded(const ImageView& src, int top, int left, Image& out) {
  const int begin = std::clamp(-left, 0, out.width()), end = std::clamp(src.width - left, begin, out.width());
  for (int y = 0; y < out.height(); ++y) {
    uint8_t* row = out.row(y);
    const bool inside = top + y >= 0 && top + y < src.height && end > begin;
    if (!inside) {
      std::memset(row, 0, size_t(out.stride()));
      continue;
    }
    std::memset(row, 0, size_t(begin) * 3);
    std::memcpy(row + begin * 3, src.row(top + y) + int64_t(left + begin) * 3, size_t(end - begin) * 3);
    std::memset(row + end * 3, 0, size_t(out.width() - end) * 3);
  }
}

void crop_reflected(const ImageView& src, int top, int left, Image& out) {
  LOWBIT_CHECK(top > -src.height && left > -src.width && top + out.height() < 2 * src.height &&
                   left + out.width() < 2 * src.width,
               value, "crop_reflected",
               "box must not reach further out than the image less one pixel (got image ", src.width, " x ",
               src.height, ", box ", out.width(), " x ", out.height(), " at ", left, ", ", top, ")");
  const auto mirror = [](int i, int n) { return i < 0 ? -i : i >= n ? 2 * (n - 1) - i : i; };
  for (int y = 0; y < out.height(); ++y) {
    const uint8_t* from = src.row(mirror(top + y, src.height));
    uint8_t* to = out.row(y);
    for (int x = 0; x < out.width(); ++x) std::memcpy(to + x * 3, from + mirror(left + x, src.width) * 3, 3);
  }
}

void flip_vertical(Image& image) {
  for (int y = 0; y < image.height() / 2; ++y)
    std::swap_ranges(image.row(y), image.row(y) + image.stride(), image.row(image.height() - 1 - y));
}

void flip_horizontal(Image& image) {
  for (int y = 0; y < image.height(); ++y) {
    uint8_t* row = image.row(y);
    for (int a = 0, b = image.width() - 1; a < b; ++a, --b)
      std::swap_ranges(row + a * 3, row + a * 3 + 3, row + b * 3);
  }
}

namespace {
/// The 256 values of a channel; the table is what makes the divisions free.
struct NormalizationTable {
  NormalizationTable(const Normalization& n, int channel) {
    for (int v = 0; v < 256; ++v) value[v] = (float(v) / 255.0f - n.mean[channel]) / n.std[channel];
  }
  float value[256];
};
}  // namespace

void normalize_chw(const Image& image, const Normalization& n, float* out) {
  const NormalizationTable table[3] = {{n, 0}, {n, 1}, {n, 2}};
  const int64_t pixels = int64_t(image.height()) * image.width();
  const uint8_t* p = image.data();
  for (int64_t i = 0; i < pixels; ++i, p += 3)
    for (int64_t c = 0; c < 3; ++c) out[i + c * pixels] = table[c].value[p[c]];
}

void planes_chw(const Image& image, uint8_t* out) {
  const int64_t pixels = int64_t(image.height()) * image.width();
  const uint8_t* p = image.data();
  for (int64_t i = 0; i < pixels; ++i, p += 3)
    for (int64_t c = 0; c < 3; ++c) out[i + c * pixels] = p[c];
}

void normalize_plane(const uint8_t* plane, int64_t pixels, const Normalization& n, int channel, float* out) {
  const NormalizationTable table(n, channel);
  for (int64_t i = 0; i < pixels; ++i) out[i] = table.value[plane[i]];
}

}  // namespace lowbit
