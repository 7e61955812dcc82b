#pragma once
#include <cstdint>

namespace lowbit {

/// Names a block of Philox draws; see tensor/hd/philox.h. A draw is a pure function of (seed, stream, counter).
struct RngKey {
  uint64_t seed = 0, stream = 0, offset = 0;
  const uint64_t* device_offset = nullptr;  ///< added to offset when not null (graph replay)
};

class Generator {
 public:
  explicit Generator(uint64_t seed, uint64_t stream = 0) : seed_(seed), stream_(stream) {}
  /// Key for `count` draws; the counter advances by whole blocks of four.
  RngKey reserve(uint64_t count) {
    RngKey k{seed_, stream_, next_, nullptr};
    next_ += (count + 3) / 4;
    return k;
  }
  uint64_t seed() const { return seed_; }
  uint64_t state() const { return next_; }
  void set_state(uint64_t s) { next_ = s; }

 private:
  uint64_t seed_, stream_, next_ = 0;
};

}  // namespace lowbit
