#pragma once
#include "tensor/hd/philox.h"

namespace lowbit {

/// Key for `count` draws of context().generator, in program order.
RngKey reserve_draws(uint64_t count);

/// While one lives, the counters of this thread's keys are relative to a number in the memory of a device,
/// which kernels read when they run: a captured step draws anew each time it is launched. Null changes
/// nothing.
class DeviceDraws {
 public:
  explicit DeviceDraws(const uint64_t* base);
  ~DeviceDraws();
  DeviceDraws(const DeviceDraws&) = delete;
};

}  // namespace lowbit
