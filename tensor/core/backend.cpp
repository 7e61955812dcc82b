#include "tensor/core/backend.h"

#include <utility>

#include "tensor/core/error.h"
#include "tensor/core/kernel_slot.h"
#include "tensor/core/plugin.h"

namespace lowbit {
namespace {

constinit const CudaBackend* registered = nullptr;
constexpr const char* kLibrary = "liblowbit_cuda.so";

std::function<void(Device)>& wait_guard() {
  static std::function<void(Device)> guard;
  return guard;
}

/// Opens the library, which registers the backend and its kernels; why not, or nothing.
std::string open_library() {
  if (registered) return {};
  std::string why;
  if (!open_plugin(kLibrary, why))
    return str_cat("no cuda backend: ", why,
                   why.starts_with("no ") ? "; configure with -DENABLE_CUDA=ON" : "");
  return registered ? "" : str_cat("no cuda backend: ", kLibrary, " registers none");
}

/// The first call opens the library; the answer stays.
const std::string& opened() {
  static const std::string why = open_library();
  return why;
}

}  // namespace

void set_cuda_backend(const CudaBackend* backend) { registered = backend; }

const CudaBackend& require_cuda_backend(const char* op) {
  LOWBIT_CHECK(opened().empty(), device, op, opened());
  return *registered;
}

std::string cuda_unusable() {
  std::string why = opened();
  if (why.empty()) registered->device_count(why);
  return why;
}

int gpu_count() {
  std::string why;
  return opened().empty() ? registered->device_count(why) : 0;
}

void set_wait_guard(std::function<void(Device)> guard) { wait_guard() = std::move(guard); }
void guard_wait(Device d) {
  if (wait_guard()) wait_guard()(d);
}

void synchronize(Device d) {
  if (!d.is_cuda()) return;
  guard_wait(d);
  require_cuda_backend("synchronize").synchronize(d);
}

Stream current_stream(Device d) {
  return d.is_cuda() ? require_cuda_backend("stream").stream(d) : Stream{d, nullptr};
}

}  // namespace lowbit
