#include "tensor/core/caching_allocator.h"

#include <algorithm>

#include "tensor/core/device_graph.h"
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
  // Pool 0: the host's own memory, which a captured step may use.
  LOWBIT_CHECK(pool_ == 0 || !capturing(), capture, "allocate",
               "a step needs the memory that its rehearsal did (got ", size, " bytes more)");
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
  if (!p) fail_full(bytes, s.device);
  add_live(size);
  if (keeps_owners()) owned_[p] = {size, nullptr}, unowned_.push_back(p);
  return p;
}

void CachingAllocator::release(void* p, size_t bytes, Stream) noexcept {
  if (!p) return;
  const size_t size = size_class(bytes);
  std::lock_guard lock(mutex_);
  stats_.live -= size;
  if (keeps_owners()) owned_.erase(p);
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

void CachingAllocator::release_pool(uint64_t pool_id) {
  std::lock_guard lock(mutex_);
  std::erase_if(private_, [&](const auto& block) { return block.second == pool_id; });
  for (auto it = free_.lower_bound({pool_id, 0}); it != free_.end() && it->first.first == pool_id;) {
    auto& ordinary = free_[{0, it->first.second}];
    ordinary.insert(ordinary.end(), it->second.begin(), it->second.end());
    it = free_.erase(it);
  }
}

void CachingAllocator::attribute(const char* op) {
  if (!keeps_owners()) return;
  std::lock_guard lock(mutex_);
  for (void* const p : unowned_)
    if (const auto it = owned_.find(p); it != owned_.end() && !it->second.op) it->second.op = op;
  unowned_.clear();
}

/// "; by operation: linear.fwd 512 MiB, …", the largest first.
std::string CachingAllocator::owners() const {
  std::map<std::string, size_t> by_op;
  for (const auto& [p, owned] : owned_) by_op[owned.op ? owned.op : "other"] += owned.size;
  std::vector<std::pair<size_t, std::string>> order;
  for (const auto& [op, bytes] : by_op) order.emplace_back(bytes, op);
  std::sort(order.rbegin(), order.rend());
  std::string s;
  for (const auto& [bytes, op] : order) s += str_cat(s.empty() ? "; by operation: " : ", ", op, " ", bytes);
  return s;
}

void CachingAllocator::fail_full(size_t bytes, Device d) const {
  fail(ErrorKind::run, "allocate",
       str_cat("out of memory (got ", bytes, " bytes requested, ", stats_.live, " live on ", d.str(),
               owners(), ")"));
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
