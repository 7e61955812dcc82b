#pragma once
// Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) of a batch, as timm has them.

#include <array>
#include <optional>
#include <vector>

#include "data/core/random.h"
#include "data/image/transforms.h"
#include "tensor/core/tensor.h"

namespace lowbit {

struct MixupOptions {
  enum class Mode : uint8_t {
    batch,  ///< one draw for the batch
    pair,   ///< one for image i and its partner
    elem,   ///< one for each image
    half    ///< as elem for the first half of the batch; the second half is only mixed in and left out
  };
  double mixup = 0, cutmix = 0;                 ///< Beta(a, a) of λ; 0: off
  std::optional<std::array<double, 2>> minmax;  ///< CutMix with sides U(minmax) of the image's instead
  double probability = 1, switch_probability = 0.5;
  Mode mode = Mode::batch;
  bool on() const { return mixup > 0 || cutmix > 0 || minmax; }
};

/// What happens to one image with its partner, the image B − 1 − i.
struct Mix {
  float lam = 1, rest = 0;  ///< share of the image and of the partner, in targets and in mixed pixels
  bool cut = false;         ///< the partner's pixels in `box` instead of mixed ones
  Box box;
  bool identity() const { return lam == 1; }
};

/// The box of CutMix for an image of height x width: ratio = √(1 − λ), cut = int(side·ratio), centre uniform,
/// clipped to the image; λ becomes 1 − box/(H·W).
Mix cutmix_box(double lam, int height, int width, Draws& draws);

/// The draws for a batch of n images. λ ~ Beta(cutmix) if u < switch_probability, else Beta(mixup).
std::vector<Mix> plan_mixup(const MixupOptions& o, int64_t n, int height, int width, Draws& draws);

/// Mixes images [B, C, H, W], u8 (rounded half to even) or f32, in place.
void apply_mixup(const std::vector<Mix>& plan, Tensor& images);

/// Targets f32 [B, classes]: λ·onehot(i) + (1 − λ)·onehot(B − 1 − i), with `smoothing` spread over all
/// classes.
Tensor mixup_targets(const std::vector<Mix>& plan, const Tensor& labels, int64_t classes, double smoothing);

}  // namespace lowbit
