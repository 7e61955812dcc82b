#pragma once
// What happens to a whole batch: Mixup or CutMix on 8-bit pixels, normalisation, random erasing, in timm's
// order.

#include "data/image/erasing.h"
#include "data/image/mixup.h"

namespace lowbit {

struct BatchAugmentOptions {
  MixupOptions mixup;
  int64_t mixup_off_epoch = 0;  ///< no mixing from this epoch on; 0: never off
  ErasingOptions erasing;
  Normalization normalization;
  double smoothing = 0;  ///< of the targets of mixed batches
  int64_t classes = 0;
  uint64_t seed = 0;
  bool on() const { return mixup.on() || erasing.probability > 0; }
};

/// A pure function of the batch, its number and the epoch.
class BatchAugment {
 public:
  explicit BatchAugment(const BatchAugmentOptions& o) : o_(o) {}
  struct Result {
    Tensor images;   ///< f32 [B, 3, H, W], normalised
    Tensor targets;  ///< f32 [B, classes]; undefined in epochs without mixing
  };
  /// `images` u8 [B, 3, H, W] are mixed in place.
  Result operator()(Tensor images, const Tensor& labels, int64_t epoch, int64_t batch) const;

 private:
  BatchAugmentOptions o_;
};

}  // namespace lowbit
