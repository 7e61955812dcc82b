#pragma once
// cuDNN's fused attention: ours is measured beside it (benchmarks/library_attention.cpp) and compared with it
// (tests/autograd/attention_cudnn_test.cpp). No part of the engine, and not needed to build it.

#include <memory>
#include <string>

#include "tensor/core/tensor.h"

namespace lowbit::test {

/// y = softmax(factor · q kᵀ) v of every head, without bias, mask and dropout. The forward pass only: 9.19
/// makes no graph of the operation for the backward one (its finalization ends with BAD_PARAM).
/// Shapes  q, y [B, N, H·D];  k, v [B, M, H·D]: bf16 on one GPU, the last dimension dense
/// Order   the library's: scores and sums f32, probabilities rounded to bf16 before they meet v
/// Source  NVIDIA cuDNN, backend API, CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR (9.13 and newer)
class CudnnAttention {
 public:
  /// Why there is none, in one line; empty where the build has it.
  static std::string missing();
  /// Plans for these tensors, where they lie.
  /// Errors  shape, dtype;  cuda: missing(), or no plan for this form on this device, with cuDNN's reason
  CudnnAttention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& y, int64_t heads,
                 double factor);
  ~CudnnAttention();
  CudnnAttention(const CudnnAttention&) = delete;
  void run();  ///< on the compute stream

 private:
  struct Plan;
  std::unique_ptr<Plan> plan_;
};

}  // namespace lowbit::test
