#pragma once
// What a program has asked of the emulated device, for tests that bound it.

#include <cstdint>

extern "C" __attribute__((weak)) void cuda_emulation_calls(int64_t* to);

namespace lowbit::test {

struct DeviceCalls {
  int64_t launches = 0, copies = 0, graphs = 0, allocations = 0, waits = 0;
};
/// False on a real device, which does not count.
inline bool counts_device_calls() { return cuda_emulation_calls != nullptr; }
/// Calls since an earlier moment, `before` = device_calls() then.
inline DeviceCalls device_calls(const DeviceCalls& before = {}) {
  int64_t n[5] = {};
  if (counts_device_calls()) cuda_emulation_calls(n);
  return {n[0] - before.launches, n[1] - before.copies, n[2] - before.graphs, n[3] - before.allocations,
          n[4] - before.waits};
}

}  // namespace lowbit::test
