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

}  // namespace lowbit
