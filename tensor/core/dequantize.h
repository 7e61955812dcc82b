#pragma once
#include <cstdint>

#include "tensor/core/kernel_slot.h"
#include "tensor/hd/macros.h"

namespace lowbit {

/// Packed codes; element i has the scale (i / inner) % extent and the offset i % channels.
struct DequantizeArgs {
  float* y;
  const void* codes;
  bool is_signed;
  const float *scale, *offset;  ///< offset may be null
  float shift;
  int64_t n, inner, extent, channels;

  LOWBIT_HD float value(int64_t i) const {
    const float code = is_signed ? float(static_cast<const int8_t*>(codes)[i])
                                 : float(static_cast<const uint8_t*>(codes)[i]);
    const float v = scale[extent == 1 ? 0 : (i / inner) % extent] * (code + shift);
    return offset ? v + offset[channels == 1 ? 0 : i % channels] : v;
  }
};
extern KernelSlot<DequantizeArgs> dequantize_codes;

}  // namespace lowbit
