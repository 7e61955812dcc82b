#pragma once
#include <vector>

#include "tensor/core/tensor.h"

namespace lowbit {

/// What the host knows of a small tensor that rarely changes: read when it was written or replaced since the
/// last look, so that a training step on a device waits for nothing. For values that the step itself writes
/// on the device (trained parameters) it would wait in every step.
class HostCopy {
 public:
  const std::vector<float>& of(const Tensor& t) {
    if (t.storage() != from_.storage() || t.version() != version_) {
      values_ = t.to_vector<float>();
      from_ = t, version_ = t.version();
    }
    return values_;
  }

 private:
  Tensor from_;
  uint32_t version_ = 0;
  std::vector<float> values_;
};

}  // namespace lowbit
