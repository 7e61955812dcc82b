#pragma once
#include "tensor/core/device.h"
#include "tensor/core/error.h"

namespace lowbit {

/// Stream on which the calling thread launches work for a device.
Stream current_stream(Device d);

/// One function pointer per device kind. Constant-initialised with the CPU kernel; the object file of the
/// CUDA kernel sets the other pointer when it is loaded.
template <class Args>
class KernelSlot {
 public:
  using Fn = void (*)(const Args&, Stream);
  constexpr KernelSlot(const char* name, Fn cpu) : name_(name), cpu_(cpu) {}
  void set_cuda(Fn f) { cuda_ = f; }
  void operator()(const Args& a, Device d) const {
    const Fn f = d.is_cuda() ? cuda_ : cpu_;
    if (!f) fail(ErrorKind::device, name_, "no cuda kernel in this build; configure with -DENABLE_CUDA=ON");
    f(a, current_stream(d));
  }

 private:
  const char* name_;
  Fn cpu_;
  Fn cuda_ = nullptr;
};

template <class Args>
struct CudaKernel {
  CudaKernel(KernelSlot<Args>& slot, typename KernelSlot<Args>::Fn f) { slot.set_cuda(f); }
};

}  // namespace lowbit
