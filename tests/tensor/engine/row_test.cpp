#include "tensor/engine/row.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "tensor/engine/column.h"
#include "tensor/engine/reduce.h"
#include "tensor/hd/math.h"
#include "tensor/hd/philox.h"

namespace lowbit {
namespace {

/// Rule 3 of docs/numerics.md, written down literally.
template <class T>
T tree_sum(const std::vector<T>& x) {
  if (x.size() > 4096) {
    std::vector<T> parts;
    for (size_t b = 0; b < x.size(); b += 4096)
      parts.push_back(
          tree_sum(std::vector<T>(x.begin() + long(b), x.begin() + long(std::min(x.size(), b + 4096)))));
    return tree_sum(parts);
  }
  T lane[32] = {};
  for (size_t i = 0; i < x.size(); ++i) lane[i % 32] += x[i];
  for (int w : {16, 8, 4, 2, 1})
    for (int i = 0; i < w; ++i) lane[i] += lane[i + w];
  return lane[0];
}

template <class T>
std::vector<T> values(int64_t n, uint64_t seed) {
  std::vector<T> v(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) v[size_t(i)] = T(philox_normal({seed, 0, 0, nullptr}, uint64_t(i)));
  return v;
}

template <class T>
void expect_same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  ASSERT_EQ(a.size(), b.size());
  EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(T)), 0);
}

const int64_t kSizes[] = {0, 1, 2, 31, 32, 33, 192, 197, 4095, 4096, 4097, 8192, 100000, 131072 + 5};

template <class T>
void sums_follow_the_rule() {
  for (int64_t n : kSizes) {
    const std::vector<T> x = values<T>(n, 1), y = values<T>(n, 2);
    const T want = tree_sum(x), want_y = tree_sum(y);
    EXPECT_EQ(cpu::Row{}.sum(n, [&](int64_t i) { return x[size_t(i)]; }), want) << n;
    for (int threads : {1, 2, 3, 4}) {
      set_threads(threads);
      std::vector<int> calls(size_t(n), 0);
      const Pack<T, 2> both = cpu::sum(n, [&](int64_t i) {
        ++calls[size_t(i)];
        return Pack<T, 2>{{x[size_t(i)], y[size_t(i)]}};
      });
      EXPECT_EQ(both[0], want) << n << " elements, " << threads << " threads";
      EXPECT_EQ(both[1], want_y);
      EXPECT_EQ(std::count(calls.begin(), calls.end(), 1), n);
    }
    set_threads(0);
  }
}
TEST(Reduce, SumsFollowRuleThreeForAnyThreadCount) {
  sums_follow_the_rule<float>();
  sums_follow_the_rule<double>();
}

TEST(Reduce, VeryLongListsReduceTheChunksByTheSameRule) {
  const int64_t n = 4096 * 4096 + 4096 * 3 + 17;  // three levels
  const auto f = [](int64_t i) { return float((i * 2654435761) % 1000) - 499.5f; };
  std::vector<float> x(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) x[size_t(i)] = f(i);
  EXPECT_EQ(cpu::sum(n, f), tree_sum(x));
  EXPECT_EQ(cpu::Row{}.sum(n, f), tree_sum(x));
}

TEST(Row, MaximumOfAnyLength) {
  for (int64_t n : kSizes) {
    const std::vector<float> x = values<float>(n, 3);
    const float want = n ? *std::max_element(x.begin(), x.end()) : -INFINITY;
    EXPECT_EQ(cpu::Row{}.max(n, [&](int64_t i) { return x[size_t(i)]; }), want) << n;
  }
}

struct SoftmaxRow {
  const float* x;
  float* y;
  int64_t n;
  template <class Row>
  LOWBIT_HD void operator()(const Row& row, int64_t r) const {
    const float* xr = x + r * n;
    float* yr = y + r * n;
    const float top = row.max(n, [=](int64_t i) { return xr[i]; });
    const float sum = row.sum(n, [=](int64_t i) {
      const float e = math::exp(xr[i] - top);
      yr[i] = e;
      return e;
    });
    row.for_each(n, [=](int64_t i) { yr[i] /= sum; });
  }
};

TEST(Row, SoftmaxIsRightAndIndependentOfThreads) {
  const int64_t rows = 300, n = 197;
  const std::vector<float> x = values<float>(rows * n, 4);
  std::vector<float> first;
  for (int threads : {1, 2, 3}) {
    set_threads(threads);
    std::vector<float> y(x.size(), NAN);
    cpu::rows(rows, n, SoftmaxRow{x.data(), y.data(), n});
    if (first.empty()) first = y;
    expect_same_bits(first, y);
  }
  set_threads(0);
  for (int64_t r = 0; r < rows; ++r) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += std::exp(double(x[size_t(r * n + i)]));
    for (int64_t i = 0; i < n; ++i)
      ASSERT_NEAR(first[size_t(r * n + i)], std::exp(double(x[size_t(r * n + i)])) / sum, 1e-7);
  }
}

template <class T>
void columns_follow_the_rule(int64_t M, int64_t N) {
  const std::vector<T> x = values<T>(M * N, 5);
  std::vector<T> want(size_t(N), T(0)), want_abs(size_t(N), T(0));
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t b = 0; b < M; b += 128) {
      T s = 0, a = 0;
      for (int64_t m = b; m < std::min(M, b + 128); ++m)
        s += x[size_t(m * N + n)], a += std::fabs(x[size_t(m * N + n)]);
      want[size_t(n)] += s, want_abs[size_t(n)] += a;
    }
  }
  for (int threads : {1, 2, 3, 4}) {
    set_threads(threads);
    std::vector<T> one(size_t(N), NAN), two(size_t(N), NAN), three(size_t(N), NAN);
    cpu::columns(
        M, N, [&](int64_t m, int64_t n) { return x[size_t(m * N + n)]; }, one.data());
    const auto pair = [&](int64_t m, int64_t n) {
      const T v = x[size_t(m * N + n)];
      return Pack<T, 2>{{v, std::fabs(v)}};
    };
    cpu::columns(M, N, pair, two.data(), three.data());
    expect_same_bits(one, want);
    expect_same_bits(two, want);
    expect_same_bits(three, want_abs);
  }
  set_threads(0);
}
TEST(Column, SumsFollowRuleFourForAnyThreadCount) {
  for (auto [M, N] : {std::pair<int64_t, int64_t>{0, 5},
                      {1, 1},
                      {127, 33},
                      {128, 128},
                      {129, 129},
                      {1576, 192},
                      {300, 1000}}) {
    columns_follow_the_rule<float>(M, N);
    columns_follow_the_rule<double>(M, N);
  }
}

}  // namespace
}  // namespace lowbit
