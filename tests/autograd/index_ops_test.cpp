// Operations on indices: orders of tokens, the largest of a row. The same numbers on a device.

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "autograd/ops/argmax.h"
#include "autograd/ops/token_order.h"
#include "tests/support/golden.h"
#include "tests/support/op_case.h"

namespace lowbit::test {
namespace {

std::vector<Device> devices() {
  std::vector<Device> all{Device{}};
  if (cuda_present()) all.push_back({Device::Kind::cuda, 0});
  return all;
}

TEST(TokenOrder, DrawnOrdersArePermutationsAndAFunctionOfTheKeyCuda) {
  const RngKey key{5, 1, 1234, nullptr}, other{5, 1, 1235, nullptr};
  for (const int64_t n : {1, 2, 49, 784}) {
    const std::vector<int64_t> expected = drawn_order(key, n, {}).to_vector<int64_t>();
    std::vector<int64_t> sorted = expected, all(expected.size());
    std::sort(sorted.begin(), sorted.end());
    std::iota(all.begin(), all.end(), 0);
    EXPECT_EQ(sorted, all);
    for (const Device d : devices()) EXPECT_EQ(drawn_order(key, n, d).to_vector<int64_t>(), expected);
    if (n > 2) {
      EXPECT_NE(drawn_order(other, n, {}).to_vector<int64_t>(), expected);
    }
  }
}

TEST(TokenOrder, DrawsBeginAtTheNumberOnTheDevice) {
  const uint64_t base = 1000;
  const RngKey relative{5, 1, 234, &base}, absolute{5, 1, 1234, nullptr};
  EXPECT_TRUE(equal_bits(drawn_order(relative, 49, {}), drawn_order(absolute, 49, {})));
}

TEST(TokenOrder, RowsPutTokensInOrderAndBackCuda) {
  const int64_t order[] = {2, 0, 3, 1};
  for (const Device d : devices()) {
    const Tensor o = Tensor::from(std::span<const int64_t>(order), {4}, d);
    EXPECT_EQ(order_rows(o, 2, false).to_vector<int64_t>(), (std::vector<int64_t>{2, 0, 3, 1, 6, 4, 7, 5}));
    EXPECT_EQ(order_rows(o, 2, true).to_vector<int64_t>(), (std::vector<int64_t>{1, 3, 0, 2, 5, 7, 4, 6}));
  }
  EXPECT_THROW(order_rows(Tensor::zeros({4}), 2, false), Error);
}

TEST(Argmax, TheFirstOfTheLargestCuda) {
  Tensor x = fill("scores", {5, 1000}, 0, 2);
  float* v = x.data<float>();
  v[0 * 1000 + 999] = v[0 * 1000 + 31] = 50;             // equal: the first
  v[1 * 1000 + 0] = INFINITY;                            // larger than all
  std::fill(v + 2 * 1000, v + 3 * 1000, -INFINITY);      // all equal
  std::fill(v + 3 * 1000, v + 4 * 1000, std::nanf(""));  // nothing compares
  const float* last = v + 4 * 1000;
  const std::vector<int64_t> expected{31, 0, 0, 0, std::max_element(last, last + 1000) - last};
  for (const Device d : devices()) EXPECT_EQ(argmax_rows(x.to(d)).to_vector<int64_t>(), expected);
  EXPECT_THROW(argmax_rows(Tensor::zeros({4})), Error);
}

}  // namespace
}  // namespace lowbit::test
