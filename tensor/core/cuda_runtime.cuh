#pragma once
// What every launcher needs: the error check, the stream and the launch.

#include <cuda_runtime.h>

#include <utility>

#include "tensor/core/device.h"
#include "tensor/core/error.h"

namespace lowbit::cuda {

inline void check(cudaError_t e, const char* op) {
  if (e == cudaSuccess) return;
  cudaGetLastError();  // a later call must not report it again
  fail(ErrorKind::cuda, op, cudaGetErrorString(e));
}
inline cudaStream_t handle(Stream s) { return static_cast<cudaStream_t>(s.handle); }

/// Starts a kernel and reports a bad configuration; errors of the kernel itself show up at the next
/// synchronisation.
template <class... Params, class... Args>
void launch(const char* op, void (*kernel)(Params...), dim3 grid, unsigned threads, Stream stream,
            Args&&... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.stream = handle(stream);
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...), op);
}

}  // namespace lowbit::cuda
