#include "train/step/step_values.h"

#include <algorithm>
#include <cstring>

namespace lowbit {

StepValues::StepValues(int64_t rows, Device d)
    : update(size_t(rows), 0.f),
      host_(Tensor::zeros({kHead + rows})),
      device_(Tensor::zeros({kHead + rows}, DType::f32, d)) {}

void StepValues::upload() {
  float* const to = host_.data<float>();
  std::memcpy(to, &draws, sizeof draws);
  to[2] = bins, to[3] = dampening;
  std::copy(update.begin(), update.end(), to + kHead);
  device_.copy_from(host_);
}

const uint64_t* StepValues::device_draws() const {
  return static_cast<const uint64_t*>(static_cast<const void*>(device_.data_const<float>()));
}

}  // namespace lowbit
