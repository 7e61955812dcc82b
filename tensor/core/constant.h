#pragma once
#include <span>

#include "tensor/core/tensor.h"

namespace lowbit {

/// A tensor of values that follow from shapes and settings: index tables, levels, fixed factors. On a device
/// it is made once for each content and kept for ever, so that a step that needs it moves no data; nobody may
/// write it. Not for values that change from step to step. On the CPU it is a new tensor.
/// T is int32_t, int64_t, float, or double (CPU gradient checks).
template <class T>
Tensor constant(std::span<const T> values, const Shape& s, Device d);

}  // namespace lowbit
