#include "data/core/sampler.h"

#include <cstddef>
#include <numeric>

#include "data/core/random.h"

namespace lowbit {

std::vector<int64_t> SequentialSampler::epoch(int64_t) const {
  std::vector<int64_t> order(static_cast<size_t>(n_));
  std::iota(order.begin(), order.end(), int64_t(0));
  return order;
}

std::vector<int64_t> ShuffleSampler::epoch(int64_t e) const { return permutation(n_, epoch_key(seed_, e)); }

std::vector<int64_t> shard(const std::vector<int64_t>& order, int64_t replicas, int64_t rank) {
  const int64_t n = int64_t(order.size()), each = (n + replicas - 1) / replicas;
  std::vector<int64_t> part;
  part.reserve(size_t(each));
  for (int64_t i = rank; n > 0 && i < each * replicas; i += replicas) part.push_back(order[size_t(i % n)]);
  return part;
}

std::vector<int64_t> repeated_shard(const std::vector<int64_t>& order, int64_t repeats, int64_t replicas,
                                    int64_t rank) {
  std::vector<int64_t> repeated;
  repeated.reserve(order.size() * size_t(repeats));
  for (const int64_t i : order) repeated.insert(repeated.end(), size_t(repeats), i);
  std::vector<int64_t> part = shard(repeated, replicas, rank);
  const int64_t n = int64_t(order.size());
  part.resize(size_t((n < 256 ? n : n / 256 * 256) / replicas));
  return part;
}

int64_t RepeatedSampler::size() const { return n_ < 256 ? n_ : n_ / 256 * 256; }

std::vector<int64_t> RepeatedSampler::epoch(int64_t e) const {
  return repeated_shard(permutation(n_, epoch_key(seed_, e)), repeats_, 1, 0);
}

}  // namespace lowbit
