#pragma once
#include <cstdint>

#include "tensor/hd/philox.h"

namespace lowbit {

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
