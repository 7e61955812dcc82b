#pragma once
// Strided, converting copy: dst[i] = src[i] with broadcasting of src already expressed as zero strides.

#include "tensor/core/kernel_slot.h"
#include "tensor/core/tensor.h"

namespace lowbit {

struct CopyArgs {
  View dst, src;
};
extern KernelSlot<CopyArgs> strided_copy;

struct FillArgs {
  View dst;
  double value;
};
extern KernelSlot<FillArgs> strided_fill;

/// Merges neighbouring dimensions that all views step through uniformly and drops extents of 1.
/// Every view must have the shape of the first. Returns the collapsed number of dimensions.
int collapse_dims(View* views, int count);

}  // namespace lowbit
