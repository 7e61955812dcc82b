#pragma once
#include <cstdint>
#include <vector>

namespace lowbit {

/// The order in which samples are visited: a pure function of the epoch.
class Sampler {
 public:
  virtual ~Sampler() = default;
  virtual int64_t size() const = 0;  ///< of every epoch
  virtual std::vector<int64_t> epoch(int64_t e) const = 0;
};

/// 0, 1, … n − 1 in every epoch.
class SequentialSampler final : public Sampler {
 public:
  explicit SequentialSampler(int64_t n) : n_(n) {}
  int64_t size() const override { return n_; }
  std::vector<int64_t> epoch(int64_t e) const override;

 private:
  int64_t n_;
};

/// A permutation of 0 … n − 1 that (seed, epoch) determine.
class ShuffleSampler final : public Sampler {
 public:
  ShuffleSampler(int64_t n, uint64_t seed) : n_(n), seed_(seed) {}
  int64_t size() const override { return n_; }
  std::vector<int64_t> epoch(int64_t e) const override;

 private:
  int64_t n_;
  uint64_t seed_;
};

/// A given list, e.g. a calibration set or the recorded order of a published run.
class ListSampler final : public Sampler {
 public:
  explicit ListSampler(std::vector<int64_t> order) : order_(std::move(order)) {}
  int64_t size() const override { return int64_t(order_.size()); }
  std::vector<int64_t> epoch(int64_t) const override { return order_; }

 private:
  std::vector<int64_t> order_;
};

/// What one of `replicas` processes visits of an order: every replicas-th entry from `rank` on, of the order
/// repeated from its head until it divides evenly (as PyTorch's DistributedSampler).
std::vector<int64_t> shard(const std::vector<int64_t>& order, int64_t replicas, int64_t rank);

/// Repeated augmentation (Hoffer et al. 2020): each index of the order `repeats` times in a row, sharded, and
/// of a shard as many as an epoch without repetition would have, ⌊n/256⌋·256/replicas (all ⌊n/replicas⌋ if n
/// < 256).
std::vector<int64_t> repeated_shard(const std::vector<int64_t>& order, int64_t repeats, int64_t replicas,
                                    int64_t rank);

/// Shuffled epochs with repeated augmentation, for one process. A repeated image is another crop: the draws
/// of a sample differ by its visit.
class RepeatedSampler final : public Sampler {
 public:
  RepeatedSampler(int64_t n, int64_t repeats, uint64_t seed) : n_(n), repeats_(repeats), seed_(seed) {}
  int64_t size() const override;
  std::vector<int64_t> epoch(int64_t e) const override;

 private:
  int64_t n_, repeats_;
  uint64_t seed_;
};

}  // namespace lowbit
