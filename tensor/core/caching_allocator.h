#pragma once
// What the allocators of all devices share: blocks in size classes, kept for reuse, in pools. Internal to
// tensor/core.

#include <map>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tensor/core/allocator.h"

namespace lowbit {

/// Blocks are reused in stream order: with the one compute stream of a device, release-then-reuse needs no
/// event. A block belongs to the pool it was allocated in: 0, or that of captured graphs until
/// release_pool(). While a graph is captured no memory can be taken from the system.
class CachingAllocator : public Allocator {
 public:
  void* allocate(size_t bytes, Stream s) override;
  void release(void* p, size_t bytes, Stream s) noexcept override;
  void begin_pool(uint64_t pool_id) override;
  void end_pool(uint64_t pool_id) override;
  void release_pool(uint64_t pool_id) override;
  void attribute(const char* op) override;
  Stats stats() const override;
  void reset_peak() override;
  /// Gives the cached blocks outside of private pools back; a captured graph keeps the addresses of its pool.
  void trim() override;

 protected:
  virtual size_t size_class(size_t bytes) const = 0;
  virtual void* fresh(size_t size) = 0;  ///< null when there is no memory
  virtual void give_back(std::span<void* const> blocks) noexcept = 0;
  /// Blocks of this size are not kept here: fresh() and give_back() reuse them in their own way, which must
  /// count misses itself and tell what it holds.
  virtual bool joins(size_t /*size*/) const { return false; }
  virtual size_t joined_free() const { return 0; }
  virtual void trim_joined() {}
  /// Keep who owns every live block, for the error of a device that is full.
  virtual bool keeps_owners() const { return false; }
  void count_miss() { ++stats_.misses; }
  void count_live(int64_t size);  ///< for blocks that do not pass through the cache

 private:
  void* take(size_t size);
  void add_live(size_t size);
  void trim_locked();
  [[noreturn]] void fail_full(size_t bytes, Device d) const;
  std::string owners() const;

  mutable std::mutex mutex_;
  uint64_t pool_ = 0;
  std::map<std::pair<uint64_t, size_t>, std::vector<void*>> free_;
  std::unordered_map<void*, uint64_t> private_;  ///< pools of the blocks that are not in pool 0
  struct Owned {
    size_t size;
    const char* op;  ///< null until the next kernel
  };
  std::unordered_map<void*, Owned> owned_;  ///< live blocks, where keeps_owners()
  std::vector<void*> unowned_;              ///< since the last kernel
  Stats stats_;
};

}  // namespace lowbit
