#pragma once
// Random erasing (Zhong et al. 2020) of a normalised image, as timm has it.

#include "data/core/random.h"
#include "data/image/transforms.h"

namespace lowbit {

struct ErasingOptions {
  enum class Mode : uint8_t {
    constant,  ///< zeros
    channel,   ///< one normal value for each channel ("rand")
    pixel      ///< a normal value for each element
  };
  double probability = 0;
  Mode mode = Mode::pixel;
  int count = 1;  ///< boxes of an image, each 1/count of the area
  double area[2] = {0.02, 1.0 / 3}, ratio[2] = {0.3, 1 / 0.3};
};

/// Overwrites `count` boxes of image [channels, height, width] with the given probability. For each, up to
/// ten tries of area = U(area)·H·W/count, aspect = exp(U(ln ratio)), h = rint(√(area·aspect)), w =
/// rint(√(area/aspect)), the first with h < H and w < W is placed by top = {0 … H − h}, left = {0 … W − w}.
/// The noise is a function of `noise` and the element. Returns the boxes.
std::vector<Box> random_erasing(const ErasingOptions& o, Draws& draws, const RngKey& noise, int channels,
                                int height, int width, float* image);

}  // namespace lowbit
