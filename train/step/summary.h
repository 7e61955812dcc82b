#pragma once
// What a run is, before it starts: model, operations, bit map, memory. For the log and --dry-run.

#include <string>

#include "nn/models/vit.h"

namespace lowbit {

struct ModelSize {
  int64_t parameters = 0;  ///< without quantizer state
  int64_t quantizer_parameters = 0;
  double macs = 0;         ///< of one image, matrix products
  double bops = 0;         ///< Σ macs · bits of one operand · bits of the other; float counts 32
  double weight_bits = 0;  ///< all parameters at their own widths
};
ModelSize model_size(VisionTransformer& model);

/// One line per group of equal products: "blocks.0-11.attn.qkv  W4 A4  21.8 M multiply-adds"; float slots
/// show "float".
std::string bit_map_text(VisionTransformer& model);

/// "deit_tiny_patch16_224, 5.72 M parameters, 1.25 G multiply-adds, 20.1 G bit operations, weights 2.9 MB".
std::string model_line(VisionTransformer& model);

struct StepEstimate {
  double seconds = 0;      ///< of one step at `batch`
  size_t saved_bytes = 0;  ///< kept for backward, scaled to `batch`
  std::string per_op;      ///< table of saved bytes by op
};
/// Runs one forward and backward of at most 8 images and scales to `batch`. Leaves no gradients behind.
StepEstimate estimate_step(VisionTransformer& model, int64_t batch);

std::string bytes_text(double bytes);  ///< "28.3 MiB"
std::string count_text(double count);  ///< "1.25 G"

}  // namespace lowbit
