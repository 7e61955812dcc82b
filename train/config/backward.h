#pragma once
#include <string>

#include "tensor/core/context.h"
#include "tensor/core/device.h"
#include "train/config/options.h"

namespace lowbit {

/// The fastest of those whose gradients are as exact as float32's: int8x3 where integer products have an
/// instruction of their own (VNNI, AMX, tensor cores), else f32.
BackwardProducts fastest_backward(Device device);

/// What --backward names; auto: fastest_backward().
BackwardProducts backward_products(const Options& o);

/// The options with auto replaced by `kind`, or by its choice here where `kind` is empty. From then on it is
/// a setting like any other, stored with the run, which has the same bits wherever it goes on.
Options with_backward(Options o, const std::string& kind);

}  // namespace lowbit
