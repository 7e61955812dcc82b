#pragma once
// Random draws of the input pipeline. Every draw is a function of (seed, epoch, index), never of a worker's
// state.

#include <cstdint>
#include <vector>

#include "tensor/hd/philox.h"

namespace lowbit {

/// Keys of the draws for one sample, for the order of an epoch, for a batch as a whole and for what is done
/// to an image once its batch is complete (`position`: in the epoch). Streams carry a tag in their top byte
/// so that they never meet each other's or those of dropout and initialisation; epoch < 2^24, index, batch,
/// position < 2^32.
RngKey sample_key(uint64_t seed, int64_t epoch, int64_t index);
RngKey epoch_key(uint64_t seed, int64_t epoch);
RngKey batch_key(uint64_t seed, int64_t epoch, int64_t batch);
RngKey erasing_key(uint64_t seed, int64_t epoch, int64_t position);
/// Of the crops of an image that a teacher labels.
RngKey crop_key(uint64_t seed, int64_t image);

/// The permutation of 0 … n − 1 that the key names (Fisher-Yates).
std::vector<int64_t> permutation(int64_t n, const RngKey& key);

/// Draws in sequence. Virtual, so that a test can force the values.
class Draws {
 public:
  virtual ~Draws() = default;
  virtual double uniform(double low, double high) = 0;     ///< [low, high)
  virtual int64_t integer(int64_t low, int64_t high) = 0;  ///< both ends included
  bool chance(double p) { return uniform(0, 1) < p; }
  virtual double beta(double a);  ///< Beta(a, a), from uniform draws
};

class PhiloxDraws final : public Draws {
 public:
  explicit PhiloxDraws(const RngKey& key) : key_(key) {}
  double uniform(double low, double high) override {
    return low + (high - low) * (philox_u32(key_, next_++) * 0x1p-32);
  }
  int64_t integer(int64_t low, int64_t high) override {
    return low + int64_t(philox_below(key_, next_++, uint64_t(high - low) + 1));
  }

 private:
  RngKey key_;
  uint64_t next_ = 0;
};

}  // namespace lowbit
