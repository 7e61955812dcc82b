#pragma once
// RandAugment (Cubuk et al. 2020) with timm's option strings and levels.

#include <string>
#include <string_view>
#include <vector>

#include "data/core/random.h"
#include "data/image/augment_ops.h"

namespace lowbit {

/// Parsed from "rand-m9-mstd0.5-inc1":
///   m<level>  mstd<deviation of the level; above 100: uniform in 0 … m>  mmax<largest level>  n<operations>
///   p<probability of each>  inc<any value: operations whose strength grows with the level>
///   w0  operations drawn with timm's weights and without repetition
struct RandAugmentPolicy {
  std::vector<std::string> ops;
  std::vector<double> weights;  ///< of the ops; empty: all equal, with repetition
  int layers = 2;
  double probability = 0.5;
  double magnitude = 10, magnitude_std = 0;  ///< std infinite: uniform
  double magnitude_max = 10;

  /// Errors  usage: not such a string
  static RandAugmentPolicy parse(const std::string& text);
};

/// What an operation receives at a level 0 … 10 (or magnitude_max): degrees, bits, threshold, factor, slope
/// or share of the side. `negate` is the draw for operations of either direction. `side`: for the absolute
/// translations.
double augment_argument(std::string_view op, double level, bool negate, int side = 224);

/// Applies one operation by name. Errors  value: unknown name
void apply_augment(std::string_view op, double argument, Filter filter, Rgb fill, Image& image,
                   Image& scratch);

/// `layers` draws of an operation; each is applied with `probability`, at a level drawn around `magnitude`.
/// Draws: which, whether, level (two), direction, filter, the same number for every operation.
void rand_augment(const RandAugmentPolicy& policy, Rgb fill, Draws& draws, Image& image, Image& scratch);

/// torchvision's ColorJitter without hue, as timm uses it for images without RandAugment: brightness,
/// contrast and saturation by factors U(max(0, 1 − strength), 1 + strength), in random order.
void color_jitter(double strength, Draws& draws, Image& image, Image& scratch);

}  // namespace lowbit
