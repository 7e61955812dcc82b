#include "tensor/engine/last_block.cuh"

#include <map>
#include <mutex>
#include <utility>

namespace lowbit::cuda {

unsigned* block_counters(Stream s) {
  static std::mutex mutex;
  static std::map<std::pair<int, void*>, unsigned*> counters;  // they live as long as the process
  const std::lock_guard lock(mutex);
  unsigned*& own = counters[{s.device.index, s.handle}];
  if (!own) {
    const DeviceScope scope(s.device.index);
    void* memory = nullptr;
    check(cudaMalloc(&memory, kBlockCounters * sizeof(unsigned)), "block_counters");
    check(cudaMemsetAsync(memory, 0, kBlockCounters * sizeof(unsigned), handle(s)), "block_counters");
    own = static_cast<unsigned*>(memory);
  }
  return own;
}

}  // namespace lowbit::cuda
