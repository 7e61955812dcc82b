#pragma once
// The part of CUDA that the kernels of this project use, on the CPU: with ENABLE_CUDA=EMULATE the .cu files
// are compiled as C++ against this header in place of NVIDIA's, so that every kernel is executed by the tests
// on machines without a GPU. It checks logic, not speed, and proves nothing about real hardware's memory
// model.
//
//   blocks run one after the other, the threads of a block as fibers that change at barriers and warp
//   operations, in every other launch in the opposite order, so that a result that hangs on the order (a
//   barrier is missing) shows; a barrier or warp operation that not all threads reach is an error; device
//   memory is readable inside kernels and copies only: host code that touches it is stopped with a message;
//   the arithmetic is that of the CPU build (no contraction, denormals flushed), as the flags of nvcc demand;
//
//   all streams are one queue, and what they are given runs at once, unless something before it waits for
//   another process (nccl.h): then the host goes on, and the rest runs when that is over. While a stream is
//   captured, launches and copies are recorded instead, and every call that allocates or waits fails as on a
//   device and spoils the capture, as does a stream that joined it by an event and is not waited for.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static  // one block runs at a time

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// ---- what a kernel sees
// ------------------------------------------------------------------------------------------

extern dim3 threadIdx, blockIdx, blockDim, gridDim;  // of the fiber that runs

void __syncthreads();

using cudaStream_t = struct EmulatedStream*;
using cudaEvent_t = struct EmulatedEvent*;

namespace cuda_emulation {
/// Exchange between the 32 lanes of a warp, which all must take part: `mine` is given, and the slots of all
/// lanes can be read until the next exchange.
const void* exchange(const void* mine, size_t bytes);
inline constexpr size_t kSlot = 64;  ///< bytes between the slots of two lanes
inline int lane() { return int(threadIdx.x % 32); }

/// The memory of the running block whose size its launch gave.
void* dynamic_shared();

/// Runs or records body for every thread of every block.
void launch(dim3 grid, dim3 block, size_t shared_bytes, void* stream, std::function<void()> body);

/// Runs or records work that may have to wait for another process: it is called until it says that it is
/// over, with true the first time of each run. False: not on a stream of this device, or not on one that
/// belongs to the capture.
bool enqueue(cudaStream_t stream, int device, std::function<bool(bool first)> work);
/// Runs what does not have to wait. A thread of the emulator does so too when the host does something else.
void advance();
/// For such work: device memory may be touched inside.
void with_device_memory(const std::function<void()>& f);
}  // namespace cuda_emulation

template <class T>
T __shfl_sync(unsigned, T value, int from) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= cuda_emulation::kSlot);
  const auto* slots = static_cast<const char*>(cuda_emulation::exchange(&value, sizeof value));
  std::memcpy(&value, slots + size_t(from % 32) * cuda_emulation::kSlot, sizeof value);
  return value;
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int with) {
  return __shfl_sync(mask, value, cuda_emulation::lane() ^ with);
}

inline void __threadfence() {}
inline unsigned atomicAdd(unsigned* to, unsigned value) { return std::exchange(*to, *to + value); }

inline uint32_t __vsub4(uint32_t a, uint32_t b) {
  uint32_t r = 0;
  for (int i = 0; i < 32; i += 8) r |= uint32_t(uint8_t((a >> i) - (b >> i))) << i;
  return r;
}

// ---- the runtime
// -------------------------------------------------------------------------------------------------

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
  cudaErrorInvalidResourceHandle = 400,
  cudaErrorNotReady = 600,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorStreamCaptureInvalidated = 901,
  cudaErrorStreamCaptureUnjoined = 904,
  cudaErrorStreamCaptureIsolation = 905
};
enum cudaMemcpyKind {
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault
};
inline constexpr unsigned cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2;

/// What a captured stream was given, in order.
using cudaGraph_t = struct EmulatedGraph*;
using cudaGraphExec_t = struct EmulatedGraph*;
using cudaGraphNode_t = struct EmulatedNode*;
enum cudaStreamCaptureMode {
  cudaStreamCaptureModeGlobal,
  cudaStreamCaptureModeThreadLocal,
  cudaStreamCaptureModeRelaxed
};

const char* cudaGetErrorString(cudaError_t e);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaMalloc(void** p, size_t bytes);
cudaError_t cudaFree(void* p);
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t s);
cudaError_t cudaMallocHost(void** p, size_t bytes);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t e);
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s);
cudaError_t cudaEventQuery(cudaEvent_t e);
cudaError_t cudaEventSynchronize(cudaEvent_t e);
cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* graph);
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t s);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t s);
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags);
cudaError_t cudaStreamSynchronize(cudaStream_t s);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t s);
cudaError_t cudaMemcpyPeerAsync(void* to, int device, const void* from, int source, size_t bytes,
                                cudaStream_t s);

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute what, int value);
cudaError_t cuda_emulation_check(const cudaLaunchConfig_t& c);

template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* c, void (*kernel)(Params...), Args&&... args) {
  if (const cudaError_t e = cuda_emulation_check(*c); e != cudaSuccess) return e;
  // Arguments are copied at the launch, and for each thread once more, as parameters of a kernel are.
  cuda_emulation::launch(c->gridDim, c->blockDim, c->dynamicSmemBytes, c->stream,
                         [=] { kernel(static_cast<Params>(args)...); });
  return cudaSuccess;
}
