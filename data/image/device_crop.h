#pragma once
// The last steps of the image pipeline, for pixels that travel to the device as bytes: resizing, flips,
// normalisation. Same bits as resize_window(), flip_*() and normalize_chw().

#include <cstdint>

#include "data/image/resize_taps.h"
#include "tensor/core/kernel_slot.h"
#include "tensor/core/tensor.h"

namespace lowbit {

/// What becomes of some pixels: they are resized to full_height x full_width, the square at (top, left) is
/// cut out, and flipped.
struct ResizeWindow {
  int32_t full_height, full_width, top, left;
  Filter filter;
  bool flip_horizontal, flip_vertical;
};

/// Pixels that lie at a place of a batch's bytes, and what becomes of them. A field "image" of a data
/// set in the decoded form holds one for each image instead of the image.
struct CropPlan {
  int64_t offset, row;  ///< of the first pixel, and from a row to the next, in bytes
  int32_t height, width;
  ResizeWindow window;
};
static_assert(sizeof(CropPlan) == 48);

/// The kernels shrink by so much at most.
inline constexpr int kMaxShrink = 16;
constexpr bool device_crop_fits(int height, int width, int full_height, int full_width) {
  return height <= int64_t(kMaxShrink) * full_height && width <= int64_t(kMaxShrink) * full_width;
}

struct FinishCropsArgs {
  View out;    ///< f32 [n, 3, size, size], packed
  View plans;  ///< u8 [n · sizeof(CropPlan)], aligned for one
  View bytes;  ///< u8; a word behind the last pixel may be read
  float mean[3], deviation[3];
};
extern KernelSlot<FinishCropsArgs> finish_crops;

}  // namespace lowbit
