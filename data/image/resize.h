#pragma once
// Resampling of 8-bit images, equal to Pillow's bit for bit, and the other pixel movements of input
// pipelines.

#include <cstdint>
#include <span>
#include <vector>

#include "data/image/image.h"
#include "data/image/resize_taps.h"

namespace lowbit {

/// Taps of one axis. Output i (counted from the window's begin) reads `count[i]` inputs from `first[i]` on,
/// with the integer weights weight[i·taps …] in units of 2^-22.
struct ResizeTaps {
  int taps = 0;
  std::vector<int> first, count;
  std::vector<int32_t> weight;
  std::vector<double> exact;  ///< weights of one output before rounding, reused

  /// Outputs [begin, begin + size) of an axis resized from `in` to `out` elements (ResizeAxis).
  void compute(int in, int out, int begin, int size, Filter filter);
};

/// Buffers of resize(); one for each thread.
struct ResizeScratch {
  ResizeTaps horizontal, vertical;
  Image rows;
};

/// The window (top, left, out.height(), out.width()) of `src` resized to full_height x full_width. Only what
/// the window needs is computed. The window must lie inside the resized image. Horizontal pass first; its
/// 8-bit result feeds the vertical pass; a pass that changes nothing is skipped. `src` must lie in an Image
/// (four bytes are loaded for a pixel; see Image::kSlack).
void resize_window(const ImageView& src, int full_height, int full_width, int top, int left, Filter filter,
                   ResizeScratch& scratch, Image& out);

/// `src` resized to the size of `out`.
inline void resize(const ImageView& src, Filter filter, ResizeScratch& scratch, Image& out) {
  resize_window(src, out.height(), out.width(), 0, 0, filter, scratch, out);
}

/// Copies the box of the size of `out` at (top, left), which may be negative; outside the image pixels are 0.
void crop_zero_padded(const ImageView& src, int top, int left, Image& out);

/// The same with the image mirrored at its border pixels (the border itself is not repeated), once.
/// The box must not reach further than height − 1 and width − 1 beyond the image.
void crop_reflected(const ImageView& src, int top, int left, Image& out);

void flip_horizontal(Image& image);
void flip_vertical(Image& image);

/// y[c][h][w] = (x[h][w][c]/255 − mean[c])/std[c], each step rounded to float as torchvision's ToTensor and
/// Normalize.
struct Normalization {
  float mean[3] = {0.485f, 0.456f, 0.406f}, std[3] = {0.229f, 0.224f, 0.225f};  ///< ImageNet
};
void normalize_chw(const Image& image, const Normalization& n, float* out);
/// The pixels themselves, channel by channel.
void planes_chw(const Image& image, uint8_t* out);
/// The same of one plane of pixels that lie apart from the other channels.
void normalize_plane(const uint8_t* plane, int64_t pixels, const Normalization& n, int channel, float* out);

}  // namespace lowbit
