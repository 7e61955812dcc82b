#include "data/core/random.h"

#include <cmath>
#include <numbers>
#include <numeric>
#include <utility>

#include "tensor/core/error.h"

namespace lowbit {

namespace {
enum class Tag : uint8_t { sample = 0xD1, order = 0xD2, batch = 0xD3, erasing = 0xD4, crops = 0xD5 };

RngKey tagged_key(Tag tag, uint64_t seed, int64_t epoch, int64_t index) {
  LOWBIT_CHECK(epoch >= 0 && epoch < (1 << 24) && index >= 0 && index <= UINT32_MAX, value, "random",
               "epoch must be below 2^24 and index below 2^32 (got ", epoch, ", ", index, ")");
  return {seed, uint64_t(tag) << 56 | uint64_t(epoch) << 32 | uint64_t(index), 0, nullptr};
}

/// Gamma(a, 1): Marsaglia & Tsang 2000; for a < 1 through Gamma(a + 1)·U^(1/a).
double gamma(double a, Draws& draws) {
  const auto open = [&] { return 1 - draws.uniform(0, 1); };
  if (a < 1) {
    const double u = open();
    return gamma(a + 1, draws) * std::pow(u, 1 / a);
  }
  const double d = a - 1.0 / 3, c = 1 / std::sqrt(9 * d);
  for (;;) {
    const double r = open(), angle = draws.uniform(0, 2 * std::numbers::pi);
    const double x = std::sqrt(-2 * std::log(r)) * std::cos(angle), v = std::pow(1 + c * x, 3);
    if (v > 0 && std::log(open()) < 0.5 * x * x + d * (1 - v + std::log(v))) return d * v;
  }
}
}  // namespace

double Draws::beta(double a) {
  const double x = gamma(a, *this), y = gamma(a, *this);
  return x + y > 0 ? x / (x + y) : 0.5;
}

RngKey sample_key(uint64_t seed, int64_t epoch, int64_t index) {
  return tagged_key(Tag::sample, seed, epoch, index);
}
RngKey epoch_key(uint64_t seed, int64_t epoch) {
  return {seed, uint64_t(Tag::order) << 56 | uint64_t(epoch), 0, nullptr};
}
RngKey batch_key(uint64_t seed, int64_t epoch, int64_t batch) {
  return tagged_key(Tag::batch, seed, epoch, batch);
}
RngKey erasing_key(uint64_t seed, int64_t epoch, int64_t position) {
  return tagged_key(Tag::erasing, seed, epoch, position);
}
RngKey crop_key(uint64_t seed, int64_t image) { return tagged_key(Tag::crops, seed, 0, image); }

std::vector<int64_t> permutation(int64_t n, const RngKey& key) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), int64_t(0));
  for (int64_t i = n - 1; i > 0; --i) {
    std::swap(order[size_t(i)], order[philox_below(key, uint64_t(i), uint64_t(i) + 1)]);
  }
  return order;
}

}  // namespace lowbit
