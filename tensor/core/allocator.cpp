#include "tensor/core/allocator.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdlib>
#include <cstring>

#include "tensor/core/backend.h"
#include "tensor/core/caching_allocator.h"
#include "tensor/core/error.h"
#include "tensor/core/stretch.h"

namespace lowbit {
namespace {

constexpr size_t kGuard = 64;
constexpr size_t kLargeBlock = 64 << 10;  // larger blocks come from the stretch
constexpr unsigned char kGuardByte = 0xA5;

bool damaged(const unsigned char* p, size_t bytes) {
  const auto intact = [](unsigned char b) { return b == kGuardByte; };
  return !std::all_of(p - kGuard, p, intact) || !std::all_of(p + bytes, p + bytes + kGuard, intact);
}

class CpuAllocator final : public CachingAllocator {
 public:
  void* allocate(size_t bytes, Stream s) override {
    return checking_ && bytes ? allocate_guarded(bytes) : CachingAllocator::allocate(bytes, s);
  }
  void release(void* p, size_t bytes, Stream s) noexcept override {
    if (guarded_count_ == 0 || !release_guarded(p, bytes)) CachingAllocator::release(p, bytes, s);
  }
  void set_check(bool on) { checking_ = on; }
  size_t violations() const {
    std::lock_guard lock(mutex_);
    size_t n = violations_;
    for (const auto& [p, bytes] : guarded_) n += damaged(p, bytes);
    return n;
  }

 private:
  size_t size_class(
      size_t bytes) const override {  // 64-byte steps, but four classes per power of two above 1 KiB
    if (bytes <= 1024 || joins(bytes)) return (bytes + 63) & ~size_t(63);
    const size_t step = std::bit_floor(bytes - 1) / 4;
    return (bytes + step - 1) / step * step;
  }
  bool joins(size_t size) const override { return size > kLargeBlock; }
  size_t joined_free() const override { return stretch_.top() - stretch_.used(); }
  void trim_joined() override { stretch_.trim(); }
  void* fresh(size_t size) override {
    if (joins(size)) {
      const size_t top = stretch_.top();
      if (void* const p = stretch_.take(size)) {
        if (stretch_.top() > top) count_miss();
        return p;
      }
      count_miss();
    }
    return std::aligned_alloc(64, size);
  }
  void give_back(std::span<void* const> blocks) noexcept override {
    for (void* p : blocks)
      if (!stretch_.give(p)) std::free(p);
  }
  void* allocate_guarded(size_t bytes) {
    const size_t total = (bytes + 2 * kGuard + 63) & ~size_t(63);
    auto* block = static_cast<unsigned char*>(std::aligned_alloc(64, total));
    LOWBIT_CHECK(block, run, "allocate", "out of memory (got ", bytes, " bytes requested)");
    std::memset(block, kGuardByte, total);
    std::memset(block + kGuard, 0xFF, bytes);
    count_live(int64_t(size_class(bytes)));
    std::lock_guard lock(mutex_);
    guarded_[block + kGuard] = bytes;
    ++guarded_count_;
    return block + kGuard;
  }
  /// False when p was not allocated while the check was on.
  bool release_guarded(void* p, size_t bytes) noexcept {
    std::lock_guard lock(mutex_);
    const auto it = guarded_.find(static_cast<unsigned char*>(p));
    if (it == guarded_.end()) return false;
    violations_ += damaged(it->first, it->second);
    std::free(it->first - kGuard);
    guarded_.erase(it);
    --guarded_count_;
    count_live(-int64_t(size_class(bytes)));
    return true;
  }

  Stretch stretch_;
  std::atomic<bool> checking_ = false;
  std::atomic<size_t> guarded_count_ = 0;
  mutable std::mutex mutex_;  ///< of the guarded blocks
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
