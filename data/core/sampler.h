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

}  // namespace lowbit
