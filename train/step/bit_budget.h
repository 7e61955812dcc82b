#pragma once
// Learned bit-widths under a budget (mixed precision).

#include <string>
#include <vector>

#include "nn/models/image_model.h"
#include "quant/quantizer/lsq_quantizer.h"
#include "train/optim/arena.h"

namespace lowbit {

/// G bit operations of one image, [1]: Σ over the matrix products of multiply-adds · bits of one operand ·
/// bits of the other / 1e9, float counting 32. Differentiable in every trained width, rounded straight
/// through. Source  VVTQ's trainer of float models, its mixed-precision extras (vvtq.md 8)
Variable bit_operations(ImageModel& model);

/// weight · max(bit_operations − budget, 0)².
Variable bit_budget_penalty(ImageModel& model, double weight, double budget);

/// No width is trained any more.
void fix_bits(ImageModel& model);

/// The widths that a run trains. Which kernels a step starts follows from them, rounded, so the host must
/// know them before a step that is to be captured or launched as a graph: it looks once, for all of them.
class TrainedWidths {
 public:
  TrainedWidths(ImageModel& model, const ParameterArena& arena);
  /// Waits for the device. What a step depends on: one character for each; empty where none is trained.
  std::string look();

 private:
  std::vector<LsqQuantizer*> quantizers_;
  Tensor values_, places_;  ///< the arena as a column; rows of it, i64
};

}  // namespace lowbit
