#pragma once
// 8-bit RGB pixels, height x width x 3, the form between the decoder and the network's input.

#include <cstddef>
#include <cstdint>
#include <memory>

namespace lowbit {

/// Larger images are refused by the decoders before anything is allocated: 16,384 a side and Pillow's limit
/// on pixels.
inline constexpr int kMaxImageSide = 16384;
inline constexpr int64_t kMaxImagePixels = 178'956'970;

struct Box {
  int top = 0, left = 0, height = 0, width = 0;
  bool operator==(const Box&) const = default;
};

/// Read-only window on RGB pixels; rows are `stride` bytes apart. A crop is a window, never a copy.
struct ImageView {
  const uint8_t* data = nullptr;
  int height = 0, width = 0;
  int64_t stride = 0;
  const uint8_t* row(int y) const { return data + y * stride; }
  ImageView crop(int top, int left, int h, int w) const { return {row(top) + left * 3, h, w, stride}; }
};

/// Packed RGB pixels. reshape() keeps the memory when it suffices, so that a worker's scratch image stops
/// allocating after a few samples; the new contents are undefined.
class Image {
 public:
  /// Bytes that may be read (not written) behind the last pixel, so that a pixel can be loaded as four bytes.
  static constexpr size_t kSlack = 16;

  Image() = default;
  Image(int height, int width) { reshape(height, width); }
  void reshape(int height, int width) {
    const size_t need = size_t(height) * size_t(width) * 3;
    if (need > capacity_) {
      pixels_ = std::make_unique_for_overwrite<uint8_t[]>(need + kSlack);
      capacity_ = need;
    }
    height_ = height;
    width_ = width;
  }
  int height() const { return height_; }
  int width() const { return width_; }
  int64_t stride() const { return int64_t(width_) * 3; }
  size_t bytes() const { return size_t(height_) * size_t(width_) * 3; }
  uint8_t* data() { return pixels_.get(); }
  const uint8_t* data() const { return pixels_.get(); }
  uint8_t* row(int y) { return data() + y * stride(); }
  ImageView view() const { return {data(), height_, width_, stride()}; }

 private:
  std::unique_ptr<uint8_t[]> pixels_;
  size_t capacity_ = 0;
  int height_ = 0, width_ = 0;
};

}  // namespace lowbit
