#pragma once
// Learned bit-widths under a budget (mixed precision).

#include "nn/models/image_model.h"

namespace lowbit {

/// G bit operations of one image, [1]: Σ over the matrix products of multiply-adds · bits of one operand ·
/// bits of the other / 1e9, float counting 32. Differentiable in every trained width, rounded straight
/// through. Source  VVTQ's trainer of float models, its mixed-precision extras (vvtq.md 8)
Variable bit_operations(ImageModel& model);

/// weight · max(bit_operations − budget, 0)²; undefined where it is 0.
Variable bit_budget_penalty(ImageModel& model, double weight, double budget);

/// No width is trained any more.
void fix_bits(ImageModel& model);

}  // namespace lowbit
