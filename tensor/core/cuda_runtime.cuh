#pragma once
// What every launcher needs: the error check and the stream.

#include <cuda_runtime.h>

#include "tensor/core/device.h"
#include "tensor/core/error.h"

namespace lowbit::cuda {

inline void check(cudaError_t e, const char* op) {
  if (e == cudaSuccess) return;
  cudaGetLastError();  // a later call must not report it again
  fail(ErrorKind::cuda, op, cudaGetErrorString(e));
}
/// After a launch: reports a bad configuration. Errors of the kernel itself show up at the next
/// synchronisation.
inline void check_launch(const char* op) { check(cudaGetLastError(), op); }
inline cudaStream_t handle(Stream s) { return static_cast<cudaStream_t>(s.handle); }

}  // namespace lowbit::cuda
