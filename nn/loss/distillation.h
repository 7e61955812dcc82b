#pragma once
// Losses between a student and its teacher, and between copies of an image, beside those of
// autograd/ops/cross_entropy.h. Every one has shape [1]; names in OFQ's code (ofq.md 11) in brackets.

#include <span>

#include "autograd/core/variable.h"

namespace lowbit {

/// The soft part on one head, the hard part on the other (kd_hard_and_soft 1, all recipes):
///   L = teacher_cross_entropy(dist, teacher) + cross entropy of cls with the targets, labels with
///   `smoothing`
/// Shapes  cls, dist, teacher [B, C]; dist undefined: cls serves twice; targets labels i64 [B] or soft [B, C]
/// Grad    of its terms, the teacher included where it wants one    Errors  those of its terms
Variable distillation_loss(const Variable& cls, const Variable& dist, const Variable& teacher,
                           const Tensor& targets, double smoothing = 0);

/// Distance of two directions: L = ‖a/‖a‖ − b/‖b‖‖, Frobenius norms over the whole tensors. Entries ≤ −100
/// (masked scores) count as 0.    Grad  to both; zero where both point the same way
/// Errors  shape, dtype, device: operands differ
Variable direction_distance(const Variable& a, const Variable& b);

/// Score maps of one attention layer, [B, H, N, N]: q·qᵀ, k·kᵀ, v·vᵀ.
struct ScoreMaps {
  Variable qq, kk, vv;
};
/// attention_scores(x, x): the map of q, k or v.   x [B, N, H·D] → [B, H, N, N].
Variable score_map(const Variable& x, int64_t heads);

/// What kd_hard_and_soft 2 adds to distillation_loss, and 3 with `values`: L = Σ_layers of the distances of
/// qq and kk, and of vv.   Errors  value: other numbers of layers
Variable score_map_loss(std::span<const ScoreMaps> student, std::span<const ScoreMaps> teacher, bool values);

/// Features after the layers [B, N, C]: the mean over layers of the mean squared difference, without the
/// tokens that the student has before the teacher's (its distillation token). [use_token_kd: `last` passes
/// the last layer only; weight kd_alpha]   Errors  value: other numbers of layers; shape: fewer tokens
Variable token_loss(std::span<const Variable> student, std::span<const Variable> teacher);

/// Consistency of `splits` copies of a batch, which follow each other in it (AugMix; timm's JsdCrossEntropy):
///   L = cross_entropy(z_0, y_0, smoothing) + α·mean_s 1/B Σ p_s·log(p_s/m),  m = clamp(mean_s p_s, 1e-7, 1)
/// Shapes  logits [splits·B, C]; labels i64 [splits·B], of which the first B are used
/// Errors  value: splits < 2 or not a divisor of the batch; those of cross_entropy
Variable consistency_loss(const Variable& logits, const Tensor& labels, int64_t splits, double smoothing,
                          double alpha = 12);

}  // namespace lowbit
