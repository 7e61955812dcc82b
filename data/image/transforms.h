#pragma once
// From a decoded photograph to the network's input. Two stages: pixels() moves 8-bit pixels (where further
// augmentations belong), normalize_chw() makes floats of them.

#include <cstdint>

#include <optional>

#include "data/core/random.h"
#include "data/image/device_crop.h"
#include "data/image/rand_augment.h"
#include "data/image/resize.h"

namespace lowbit {

/// torchvision's RandomResizedCrop.get_params: up to ten tries of
///   area = U(scale)·H·W, aspect = exp(U(ln ratio)), w = rint(√(area·aspect)), h = rint(√(area/aspect)),
/// the first that fits is placed by top = {0 … H − h}, left = {0 … W − w}; draws in the order area, aspect,
/// top, left. If none fits: the whole image, cut centrally to the nearest allowed aspect.
Box random_resized_crop(int height, int width, const double (&scale)[2], const double (&ratio)[2],
                        Draws& draws);

/// torchvision's Resize(size): shorter side = size, longer = ⌊size · longer/shorter⌋; {height, width} of
/// `box`.
Box resized_shorter_side(int height, int width, int size);

/// torchvision's CenterCrop offset: half of the rest, rounded half to even; negative (padding) when size <
/// crop.
int center_offset(int size, int crop);

struct TransformOptions {
  enum class Geometry : uint8_t {
    random_resized_crop,  ///< training on photographs of any size
    random_crop,  ///< training on images of one size: reflect-pad by `pad`, cut at a random offset, drawn
                  ///< for each image (recipes that draw one for a batch pass its Draws to pixels())
    center_crop   ///< evaluation
  };
  enum class Interpolation : uint8_t { bilinear, bicubic, random };  ///< random: either, for each sample

  Geometry geometry = Geometry::center_crop;
  int size = 224;  ///< of the square result
  Interpolation interpolation = Interpolation::bicubic;
  double scale[2] = {0.08, 1.0}, ratio[2] = {3.0 / 4, 4.0 / 3};  ///< random_resized_crop
  int resize =
      256;      ///< center_crop and random_crop: shorter side before cutting; 0 leaves the image as it is
  int pad = 0;  ///< random_crop
  double flip = 0, flip_vertical = 0;             ///< probabilities
  std::optional<RandAugmentPolicy> rand_augment;  ///< filled with the mean colour
  double color_jitter = 0;                        ///< strength, see color_jitter()
  Normalization normalization;
};

inline constexpr int kMaxTransformSize = 8192;

/// Shorter side for a crop fraction, as timm and Evol-Q do: ⌊size/crop_pct⌋ (224: 256 at 0.875, 248 at 0.9).
int resize_for_crop_pct(int size, double crop_pct);

class ImageTransform {
 public:
  explicit ImageTransform(const TransformOptions& o);
  const TransformOptions& options() const { return o_; }

  struct Scratch {
    ResizeScratch resize;
    Image resized, augmented;
  };
  /// `out` becomes size x size. A pure function of the pixels and the draws; draws are taken in the order
  /// crop, interpolation, flips, colour jitter, RandAugment. `src` must lie in an Image. Errors  value:
  /// random_crop of an image too small
  void pixels(const ImageView& src, Draws& draws, Scratch& scratch, Image& out) const;

  /// pixels() in two steps, for a decoder that need not decode what is cut away: the part of an image that
  /// is looked at (the crop of random_resized_crop, everything otherwise), and the rest from those pixels.
  Box part(int height, int width, Draws& draws) const;
  void pixels_of_part(const ImageView& part, Draws& draws, Scratch& scratch, Image& out) const;
  /// The same draws, and what pixels_of_part() does with a part of this size, where that is a ResizeWindow
  /// that finish_crops() can do; else nothing, and no draw is taken.
  std::optional<ResizeWindow> window_of_part(int height, int width, Draws& draws) const;

 private:
  Filter filter(Draws& draws) const;
  void random_crop(const ImageView& src, Filter filter, Draws& draws, Scratch& scratch, Image& out) const;
  void center_crop(const ImageView& src, Filter filter, Scratch& scratch, Image& out) const;
  TransformOptions o_;
};

}  // namespace lowbit
