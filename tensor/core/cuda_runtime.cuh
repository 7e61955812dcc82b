#pragma once
// What every launcher needs: the error check, the stream and the launch.

#include <cuda_runtime.h>

#include <atomic>
#include <utility>

#include "tensor/core/allocator.h"
#include "tensor/core/device.h"
#include "tensor/core/error.h"

namespace lowbit::cuda {

inline void check(cudaError_t e, const char* op) {
  if (e == cudaSuccess) return;
  cudaGetLastError();  // a later call must not report it again
  fail(ErrorKind::cuda, op, cudaGetErrorString(e));
}
inline cudaStream_t handle(Stream s) { return static_cast<cudaStream_t>(s.handle); }

inline std::atomic<int64_t> launched = 0;  ///< kernels so far
/// A kernel is about to be started: it is the one that the newest blocks of memory are for.
inline void account(const char* op, Stream s) {
  ++launched;
  allocator(s.device).attribute(op);
}

/// Makes a device current for a scope.
class DeviceScope {
 public:
  explicit DeviceScope(int index) {
    check(cudaGetDevice(&before_), "device");
    changed_ = index != before_;
    if (changed_) check(cudaSetDevice(index), "device");
  }
  ~DeviceScope() {
    if (changed_) cudaSetDevice(before_);
  }

 private:
  int before_ = 0;
  bool changed_ = false;
};

/// Starts a kernel and reports a bad configuration; errors of the kernel itself show up at the next
/// synchronisation.
template <class... Params, class... Args>
void launch(const char* op, void (*kernel)(Params...), dim3 grid, unsigned threads, Stream stream,
            Args&&... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.stream = handle(stream);
  const DeviceScope scope(stream.device.index);
  account(op, stream);
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...), op);
}

/// The same with shared memory whose size is known at the launch; in the kernel, dynamic_shared<T>().
template <class... Params, class... Args>
void launch_shared(const char* op, void (*kernel)(Params...), dim3 grid, unsigned threads, size_t bytes,
                   Stream stream, Args&&... args) {
  const DeviceScope scope(stream.device.index);
  constexpr size_t kWithoutAsking = 48 << 10;
  if (bytes > kWithoutAsking)
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)),
          op);
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = bytes;
  config.stream = handle(stream);
  account(op, stream);
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...), op);
}

/// The calling block's memory of launch_shared, aligned to 16 bytes.
template <class T>
__device__ T* dynamic_shared() {
#if defined(__CUDACC__)
  extern __shared__ __align__(16) unsigned char lowbit_dynamic_shared[];
  return reinterpret_cast<T*>(lowbit_dynamic_shared);
#else
  return reinterpret_cast<T*>(cuda_emulation::dynamic_shared());
#endif
}

}  // namespace lowbit::cuda
