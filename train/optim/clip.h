#pragma once
// Norm and clipping of the gradients in an arena. Sums follow rule 3 of the numerics contract for each
// parameter and go over the parameters in order: the same bits for any number of threads.

#include "train/optim/arena.h"

namespace lowbit {

enum class ClipMode : uint8_t {
  norm,   ///< g *= min(1, limit/(‖g‖ + 1e-6)), all gradients together
  value,  ///< g = clamp(g, −limit, limit)
  agc  ///< per output unit g *= limit·max(‖w‖, 1e-3)/max(‖g‖, 1e-6) where ‖g‖ ≥ limit·max(‖w‖, 1e-3)
};
ClipMode clip_mode(const std::string& name);  ///< Error(usage) when unknown

/// f64 [2] on the device of the arena, which nobody waits for: the square root of the sum of squares of all
/// gradients that are there, and what clipping to a limit multiplies them by.
Tensor gradient_norm(const ParameterArena& a);

/// Clips in place; slices without a gradient are left alone. `skip_last` parameters at the end of the arena
/// are not clipped by agc (timm: 2, the head). A unit of agc is one index of the first dimension; a tensor of
/// one dimension is one unit.
void clip_gradients(ParameterArena& a, ClipMode mode, double limit, int skip_last = 0);

}  // namespace lowbit
