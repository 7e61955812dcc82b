#pragma once
#include "nn/models/image_model.h"
#include "quant/scheme/scheme.h"
#include "train/config/options.h"
#include "train/metrics/log.h"
#include "train/step/build.h"

namespace lowbit {

/// Puts the quantizers of --quantizer at --wbits, --abits and --edge-bits into the model's slots. Nothing is
/// installed when both widths are 32.   Errors  usage: no such scheme
Report quantize(ImageModel& model, const Options& o);

/// Gives every quantizer that has no scale yet its first one from one forward pass in evaluation mode over
/// --calibration-images training images (validation images where no training images were opened; what the
/// published programs take with --compat reference). Quantizers that observe ranges are fixed afterwards.
void calibrate(ImageModel& model, const Options& o, const DataSets& data, Log& log);

/// OFQ's published conversion of a float model, with --compat reference only: `attn.proj`, `attn.qkv`, the
/// biases of patch merging and the tables of relative positions begin anew. Their names.
std::vector<std::string> reinitialise_as_published(ImageModel& model, const Options& o);

/// Which parameters --weight-decay concerns: --decay-exempt, and VVTQ's rule with --compat reference.
/// Errors  usage: not regular expressions
void choose_decay(ImageModel& model, const Options& o);

}  // namespace lowbit
