#include "tensor/core/backend.h"

#include "tensor/core/error.h"
#include "tensor/core/kernel_slot.h"

namespace lowbit {
namespace {
constinit const CudaBackend* registered = nullptr;  // set before main
}

void set_cuda_backend(const CudaBackend* backend) { registered = backend; }
const CudaBackend* cuda_backend() { return registered; }

const CudaBackend& require_cuda_backend(const char* op) {
  LOWBIT_CHECK(registered, device, op, "no cuda backend in this build; configure with -DENABLE_CUDA=ON");
  return *registered;
}

Stream current_stream(Device d) {
  return d.is_cuda() ? require_cuda_backend("stream").stream(d) : Stream{d, nullptr};
}

}  // namespace lowbit
