#include "tensor/core/allocator.h"

#include <bit>
#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

#include "tensor/core/error.h"

namespace lowbit {
namespace {

/// Size class: 64-byte steps up to 1 KiB, then four classes per power of two (at most 25 % slack).
size_t size_class(size_t bytes) {
  if (bytes <= 1024) return (bytes + 63) & ~size_t(63);
  const size_t step = std::bit_floor(bytes - 1) / 4;
  return (bytes + step - 1) / step * step;
}

class CpuAllocator final : public Allocator {
 public:
  void* allocate(size_t bytes, Stream) override {
    if (bytes == 0) return nullptr;
    const size_t size = size_class(bytes);
    std::lock_guard lock(mutex_);
    ++stats_.calls;
    stats_.live += size;
    if (stats_.live > stats_.peak) stats_.peak = stats_.live;
    auto& list = free_[size];
    if (!list.empty()) {
      void* p = list.back();
      list.pop_back();
      stats_.cached -= size;
      return p;
    }
    ++stats_.misses;
    void* p = std::aligned_alloc(64, size);
    if (!p) {
      trim_locked();
      p = std::aligned_alloc(64, size);
    }
    if (!p) stats_.live -= size;
    LOWBIT_CHECK(p, run, "allocate", "out of memory (got ", bytes, " bytes requested, ", stats_.live,
                 " live)");
    return p;
  }
  void release(void* p, size_t bytes, Stream) noexcept override {
    if (!p) return;
    const size_t size = size_class(bytes);
    std::lock_guard lock(mutex_);
    stats_.live -= size;
    stats_.cached += size;
    free_[size].push_back(p);
  }
  void begin_pool(uint64_t) override {}
  void end_pool(uint64_t) override {}
  Stats stats() const override {
    std::lock_guard lock(mutex_);
    return stats_;
  }
  void reset_peak() override {
    std::lock_guard lock(mutex_);
    stats_.peak = stats_.live;
  }
  void trim() override {
    std::lock_guard lock(mutex_);
    trim_locked();
  }

 private:
  void trim_locked() {
    for (auto& [size, list] : free_)
      for (void* p : list) std::free(p);
    free_.clear();
    stats_.cached = 0;
  }
  mutable std::mutex mutex_;
  std::map<size_t, std::vector<void*>> free_;
  Stats stats_;
};

Allocator* (*cuda_factory)(int) = nullptr;

}  // namespace

void set_cuda_allocator(Allocator* (*factory)(int)) { cuda_factory = factory; }

Allocator& allocator(Device d) {
  // Never destroyed: tensors with static lifetime release into it at exit.
  static CpuAllocator& cpu = *new CpuAllocator;
  if (!d.is_cuda()) return cpu;
  LOWBIT_CHECK(cuda_factory, device, "allocate",
               "no cuda backend in this build; configure with -DENABLE_CUDA=ON");
  return *cuda_factory(d.index);
}

}  // namespace lowbit
