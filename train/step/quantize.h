#pragma once
#include "nn/models/vit.h"
#include "train/config/options.h"
#include "train/metrics/log.h"
#include "train/step/build.h"

namespace lowbit {

struct QuantizeReport {
  bool active = false;
};

/// Puts the quantizers that --quantizer, --wbits, --abits, --edge-bits and --use-offset name into the model's slots.
QuantizeReport quantize(VisionTransformer& model, const Options& o);

/// Gives every quantizer that has no scale yet its first one: weights from their values, activations from one forward
/// pass over --calibration-images training images (validation images where no training images were opened) in
/// evaluation mode.
void calibrate(VisionTransformer& model, const Options& o, const DataSets& data, Log& log);

}  // namespace lowbit
