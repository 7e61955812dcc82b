#include "tensor/core/allocator.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "tensor/core/backend.h"
#include "tensor/core/error.h"

namespace lowbit {
namespace {

/// Size class: 64-byte steps up to 1 KiB, then four classes per power of two (at most 25 % slack).
size_t size_class(size_t bytes) {
  if (bytes <= 1024) return (bytes + 63) & ~size_t(63);
  const size_t step = std::bit_floor(bytes - 1) / 4;
  return (bytes + step - 1) / step * step;
}

constexpr size_t kGuard = 64;
constexpr unsigned char kGuardByte = 0xA5;

bool damaged(const unsigned char* p, size_t bytes) {
  const auto intact = [](unsigned char b) { return b == kGuardByte; };
  return !std::all_of(p - kGuard, p, intact) || !std::all_of(p + bytes, p + bytes + kGuard, intact);
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
    if (checking_) return allocate_guarded(bytes);
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
    if (release_guarded(p)) return;
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
  void set_check(bool on) {
    std::lock_guard lock(mutex_);
    checking_ = on;
  }
  size_t violations() const {
    std::lock_guard lock(mutex_);
    size_t n = violations_;
    for (const auto& [p, bytes] : guarded_) n += damaged(p, bytes);
    return n;
  }

 private:
  void* allocate_guarded(size_t bytes) {
    const size_t total = (bytes + 2 * kGuard + 63) & ~size_t(63);
    auto* block = static_cast<unsigned char*>(std::aligned_alloc(64, total));
    LOWBIT_CHECK(block, run, "allocate", "out of memory (got ", bytes, " bytes requested)");
    std::memset(block, kGuardByte, total);
    std::memset(block + kGuard, 0xFF, bytes);
    guarded_[block + kGuard] = bytes;
    return block + kGuard;
  }
  /// False when p was not allocated while the check was on.
  bool release_guarded(void* p) noexcept {
    const auto it = guarded_.find(static_cast<unsigned char*>(p));
    if (it == guarded_.end()) return false;
    violations_ += damaged(it->first, it->second);
    std::free(it->first - kGuard);
    guarded_.erase(it);
    return true;
  }
  void trim_locked() {
    for (auto& [size, list] : free_)
      for (void* p : list) std::free(p);
    free_.clear();
    stats_.cached = 0;
  }
  mutable std::mutex mutex_;
  std::map<size_t, std::vector<void*>> free_;
  Stats stats_;
  bool checking_ = false;
  size_t violations_ = 0;
  std::map<unsigned char*, size_t> guarded_;
};

CpuAllocator& cpu_allocator() {
  // Never destroyed: tensors with static lifetime release into it at exit.
  static CpuAllocator& cpu = *new CpuAllocator;
  return cpu;
}

}  // namespace

void set_allocation_check(bool on) { cpu_allocator().set_check(on); }
size_t allocation_violations() { return cpu_allocator().violations(); }

Allocator& allocator(Device d) {
  return d.is_cuda() ? require_cuda_backend("allocate").allocator(d.index) : cpu_allocator();
}

}  // namespace lowbit
