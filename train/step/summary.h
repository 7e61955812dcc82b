#pragma once
// What a run is, before it starts: model, operations, bit map, memory. For the log and --dry-run.

#include <string>

#include "nn/models/image_model.h"
#include "train/metrics/run_log.h"

namespace lowbit {

struct ModelSize {
  int64_t parameters = 0;  ///< without quantizer state
  int64_t quantizer_parameters = 0;
  double macs = 0;         ///< of one image, matrix products
  double bops = 0;         ///< Σ macs · bits of one operand · bits of the other; float counts 32
  double weight_bits = 0;  ///< all parameters at their own widths
};
ModelSize model_size(ImageModel& model);

/// Neighbouring blocks with the same bits together.
std::vector<BitMapRow> bit_map_rows(ImageModel& model);
/// The same as text: "blocks.0-11.attn.qkv  weights 4 bit  activations 4 bit  21.8 M multiply-adds"; float
/// slots show "float".
std::string bit_map_text(ImageModel& model);

/// "deit_tiny_patch16_224, 5.72 M parameters, 1.25 G multiply-adds, 20.1 G bit operations, weights 2.9 MB".
std::string model_line(ImageModel& model);

std::string bytes_text(double bytes);  ///< "28.3 MiB"
std::string count_text(double count);  ///< "1.25 G"

}  // namespace lowbit
