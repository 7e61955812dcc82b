#pragma once
// How the CUDA backend plugs in: its object files set these entry points when they are loaded, at the start
// of programs that they are linked into, else with the library liblowbit_cuda.so, which lies beside the
// program and is opened when somebody asks for the backend. The rest of the program never includes a CUDA
// header.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "tensor/core/allocator.h"
#include "tensor/core/device.h"

namespace lowbit {

struct CudaBackend {
  int (*device_count)(std::string& why);  ///< 0 and the reason where no GPU can be used
  Allocator& (*allocator)(int device_index);
  Stream (*stream)(Device d);  ///< the compute stream of a device
  /// Copies bytes between two places, at least one of them on a GPU. Host memory may be reused on return.
  void (*transfer)(void* dst, Device to, const void* src, Device from, size_t bytes);
  void (*synchronize)(Device d);  ///< waits for the work of the compute stream
  /// As transfer() from host memory, through pinned memory and without waiting for the device.
  void (*upload)(void* dst, Device to, const void* src, size_t bytes);
  // A graph (tensor/core/device_graph.h): what the compute stream is given between begin and end.
  void (*begin_capture)(Device d);
  /// The executable graph and its number of nodes. Null, and the reason in `why`: it could not be recorded.
  void* (*end_capture)(Device d, int64_t& nodes, std::string& why);
  void (*launch_graph)(Device d, void* graph);
  void (*destroy_graph)(Device d, void* graph) noexcept;  ///< after the device has done its work
  int64_t (*launches)();  ///< of kernels so far, those of libraries not counted
};

void set_cuda_backend(const CudaBackend* backend);
/// The backend, or an error that names the operation.
const CudaBackend& require_cuda_backend(const char* op);
/// Why no GPU can be used, in one line; empty where one can.
std::string cuda_unusable();
int gpu_count();  ///< 0 where none can be used
/// Waits until the device has done what it was given; nothing to do on the CPU.
void synchronize(Device d);
/// Who has given a device work that may never end, a sum over processes, is called before the host waits for
/// a device without a limit (synchronize(), Tensor::to()), and waits with one. An empty `guard` takes it
/// away.
void set_wait_guard(std::function<void(Device)> guard);
void guard_wait(Device d);  ///< calls it

}  // namespace lowbit
