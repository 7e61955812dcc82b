#pragma once
// How the CUDA backend plugs in: its object files set these entry points when they are loaded. The rest of
// the program never includes a CUDA header.

#include <cstddef>

#include "tensor/core/allocator.h"
#include "tensor/core/device.h"

namespace lowbit {

struct CudaBackend {
  Allocator& (*allocator)(int device_index);
  Stream (*stream)(Device d);  ///< the compute stream of a device
  /// Copies bytes between two places, at least one of them on a GPU. Host memory may be reused on return.
  void (*transfer)(void* dst, Device to, const void* src, Device from, size_t bytes);
};

void set_cuda_backend(const CudaBackend* backend);
const CudaBackend* cuda_backend();  ///< null in a build without CUDA
/// The backend, or an error that names the operation.
const CudaBackend& require_cuda_backend(const char* op);

}  // namespace lowbit
