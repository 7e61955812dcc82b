#pragma once
#include <utility>
#include <vector>

#include "tensor/core/tensor.h"

namespace lowbit {

/// What the host knows of a small tensor that rarely changes: read when it was written or replaced since the
/// last look, so that a training step on a device waits for nothing. For values that the step itself writes
/// on the device (trained parameters) it would wait in every step, for each of them; who has read many at
/// once tells them.
class HostCopy {
 public:
  const std::vector<float>& of(const Tensor& t) {
    if (t.storage() != from_.storage() || t.version() != version_) tell(t, t.to_vector<float>());
    return values_;
  }
  /// `values` are those of t now.
  void tell(const Tensor& t, std::vector<float> values) {
    values_ = std::move(values);
    from_ = t, version_ = t.version();
  }

 private:
  Tensor from_;
  uint32_t version_ = 0;
  std::vector<float> values_;
};

}  // namespace lowbit
