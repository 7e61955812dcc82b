#pragma once
#include <span>
#include <vector>

#include "tensor/core/tensor.h"

namespace lowbit {

/// What changes from one training step to the next, in the memory of the device and in one piece: kernels of
/// a captured step read it there, and one small copy before the step brings it up to date.
class StepValues {
 public:
  /// `rows` floats of the optimizer (Optimizer::hyper).
  StepValues(int64_t rows, Device d);

  uint64_t draws = 0;             ///< counter at which the random draws of the step begin
  float bins = 0, dampening = 0;  ///< weights of the regularizers
  std::vector<float> update;      ///< the optimizer's rows
  /// Copies them to the device, after the work that was started before.
  void upload();

  const uint64_t* device_draws() const;
  Tensor device_bins() const { return window({1}, 2); }       ///< f32 [1]
  Tensor device_dampening() const { return window({1}, 3); }  ///< f32 [1]
  Tensor device_update(const Shape& s) const { return window(s, kHead); }

 private:
  static constexpr int64_t kHead = 16;  ///< floats before the optimizer's rows: 64 bytes
  Tensor window(const Shape& s, int64_t offset) const {
    return Tensor::window(device_.storage(), s, DType::f32, offset);
  }
  Tensor host_, device_;  ///< f32 [kHead + rows]
};

}  // namespace lowbit
