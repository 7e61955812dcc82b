#pragma once
// Caching allocators, one per device. First touch of fresh memory costs several times its reuse (page faults
// on the CPU, driver calls on a GPU), so released blocks are kept in size classes.

#include <cstddef>
#include <cstdint>
#include <string>

#include "tensor/core/device.h"

namespace lowbit {

class Allocator {
 public:
  virtual ~Allocator() = default;
  virtual void* allocate(size_t bytes, Stream s) = 0;  ///< 64-byte aligned; null for 0 bytes
  virtual void release(void* p, size_t bytes, Stream s) noexcept = 0;
  virtual void begin_pool(uint64_t pool_id) = 0;  ///< private pool (graph capture)
  virtual void end_pool(uint64_t pool_id) = 0;
  /// The blocks of a pool become ordinary ones: no graph refers to them any more.
  virtual void release_pool(uint64_t pool_id) = 0;
  /// Says for which operation the blocks allocated since the last call are: that of the next kernel.
  virtual void attribute(const char* /*op*/) {}
  struct Stats {
    size_t live = 0, peak = 0, cached = 0, calls = 0, misses = 0;
  };
  virtual Stats stats() const = 0;
  virtual void reset_peak() = 0;
  virtual void trim() = 0;  ///< gives cached blocks back to the system
};

Allocator& allocator(Device d);

/// Debugging aid of the tests: while on, new CPU blocks are filled with 0xFF bytes (NaN) and lie between two
/// guard bands, which are checked when the block is released.
void set_allocation_check(bool on);
/// Damaged guard bands so far, those of live blocks included.
size_t allocation_violations();

}  // namespace lowbit
