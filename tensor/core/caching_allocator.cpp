#include "tensor/core/caching_allocator.h"

#include <algorithm>

#include "tensor/core/error.h"

namespace lowbit {

void CachingAllocator::add_live(size_t size) {
  stats_.live += size;
  stats_.peak = std::max(stats_.peak, stats_.live);
}

void* CachingAllocator::take(size_t size) {
  if (!joins(size)) {
    auto& list = free_[{pool_, size}];
    if (!list.empty()) {
      void* const p = list.back();
      list.pop_back();
      stats_.cached -= size;
      return p;
    }
    ++stats_.misses;
  }
  void* p = fresh(size);
  if (!p) {
    trim_locked();
    p = fresh(size);
  }
  if (p && pool_ != 0) private_[p] = pool_;
  return p;
}

void* CachingAllocator::allocate(size_t bytes, Stream s) {
  if (bytes == 0) return nullptr;
  const size_t size = size_class(bytes);
  std::lock_guard lock(mutex_);
  ++stats_.calls;
  void* const p = take(size);
  LOWBIT_CHECK(p, run, "allocate", "out of memory (got ", bytes, " bytes requested, ", stats_.live,
               " live on ", s.device.str(), ")");
  add_live(size);
  return p;
}

void CachingAllocator::release(void* p, size_t bytes, Stream) noexcept {
  if (!p) return;
  const size_t size = size_class(bytes);
  std::lock_guard lock(mutex_);
  stats_.live -= size;
  if (joins(size)) return give_back({&p, 1});
  stats_.cached += size;
  const auto it = private_.find(p);
  free_[{it == private_.end() ? 0 : it->second, size}].push_back(p);
}

void CachingAllocator::begin_pool(uint64_t pool_id) {
  std::lock_guard lock(mutex_);
  pool_ = pool_id;
}

void CachingAllocator::end_pool(uint64_t) {
  std::lock_guard lock(mutex_);
  pool_ = 0;
}

Allocator::Stats CachingAllocator::stats() const {
  std::lock_guard lock(mutex_);
  Stats s = stats_;
  s.cached += joined_free();
  return s;
}

void CachingAllocator::reset_peak() {
  std::lock_guard lock(mutex_);
  stats_.peak = stats_.live;
}

void CachingAllocator::trim() {
  std::lock_guard lock(mutex_);
  trim_locked();
}

void CachingAllocator::trim_locked() {
  trim_joined();
  for (auto& [key, list] : free_) {
    if (key.first != 0) continue;
    give_back(list);
    stats_.cached -= key.second * list.size();
    list.clear();
  }
}

void CachingAllocator::count_live(int64_t size) {
  std::lock_guard lock(mutex_);
  if (size > 0) ++stats_.calls, add_live(size_t(size));
  if (size < 0) stats_.live -= size_t(-size);
}

}  // namespace lowbit
