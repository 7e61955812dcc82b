#include "autograd/ops/reduce.h"

#include <gtest/gtest.h>

#include <cmath>

#include "autograd/core/variable.h"
#include "autograd/ops/pointwise.h"
#include "tests/support/golden.h"
#include "tests/support/op_case.h"

namespace lowbit::test {
namespace {

std::vector<InputSpec> input(Shape s) { return {{.name = "x", .shape = s}}; }

OpCase over(const char* name, Shape shape, std::vector<int> dims, bool keep, bool average,
            std::function<std::vector<InputSpec>(int64_t)> sizes) {
  return {.name = name,
          .inputs = input(shape),
          .fn =
              [=](std::span<const Variable> v) {
                return average ? mean(v[0], dims, keep) : sum(v[0], dims, keep);
              },
          .sizes = sizes};
}

std::vector<OpCase> cases() {
  std::vector<OpCase> c{over("sum_last", {4, 5, 6}, {-1}, false, false,
                             [](int64_t n) {
                               return input({2, 3, n});
                             }),
                        over("sum_first", {4, 5, 6}, {0}, false, false,
                             [](int64_t n) {
                               return input({n, 2, 3});
                             }),
                        over("sum_middle", {4, 5, 6}, {1}, true, false,
                             [](int64_t n) {
                               return input({2, n, 3});
                             }),
                        over("sum_outer_and_inner", {3, 4, 5}, {0, 2}, true, false,
                             [](int64_t n) {
                               return input({2, 3, n});
                             }),
                        over("mean_rows", {7, 300}, {1}, false, true, nullptr),
                        over("mean_tokens", {4, 17, 6}, {1}, false, true, [](int64_t n) {
                          return input({2, n, 3});
                        })};
  // The gradient of a plain total is a constant; squares make it tell positions apart.
  c.push_back({.name = "sum_all",
               .inputs = input({5, 6}),
               .fn = [](std::span<const Variable> v) { return sum(square(v[0])); },
               .sizes = [](int64_t n) { return input({n}); },
               .misuse = {{"range",
                           [] {
                             sum(Variable(Tensor::zeros({2, 3})), {2});
                           },
                           "sum: dimension must be in [-2, 2) (got dim=2, x=[2, 3] f32 cpu)"},
                          {"twice",
                           [] {
                             sum(Variable(Tensor::zeros({2, 3})), {1, -1});
                           },
                           "sum: dimensions must differ (got dim=-1 twice, x=[2, 3] f32 cpu)"}},
               .perf = {.inputs = input({64, 197, 192})}});
  c.push_back({.name = "mean_all",
               .inputs = input({5, 6}),
               .fn = [](std::span<const Variable> v) { return mean(square(v[0])); },
               .misuse = {{"empty",
                           [] {
                             mean(Variable(Tensor::zeros({0, 3})));
                           },
                           "mean: x must not be empty (got x=[0, 3] f32 cpu)"}}});
  return c;
}

const bool registered = register_op_cases("Reduce", cases());

/// numerics.md, row rule: 32 lanes, then halving; chunks of 4096 reduced by the same rule.
float row_rule(const float* x, int64_t n) {
  if (n > 4096) {
    std::vector<float> chunks;
    for (int64_t b = 0; b < n; b += 4096) chunks.push_back(row_rule(x + b, std::min<int64_t>(4096, n - b)));
    return row_rule(chunks.data(), int64_t(chunks.size()));
  }
  float lane[32] = {};
  for (int64_t i = 0; i < n; ++i) lane[i % 32] += x[i];
  for (int w = 16; w >= 1; w /= 2)
    for (int i = 0; i < w; ++i) lane[i] += lane[i + w];
  return lane[0];
}

TEST(Reduce, WholeTensorSumFollowsTheRowRule) {
  for (int64_t n : {1, 31, 33, 4096, 4097, 20000, 300000}) {
    const Tensor x = fill("x", {n}, 0.3, 1);
    EXPECT_EQ(sum(Variable(x)).data().item<float>(), row_rule(x.data_const<float>(), n)) << n;
  }
}

TEST(Reduce, ColumnSumFollowsTheBlockRule) {
  for (int64_t rows : {1, 127, 128, 129, 1000}) {
    const int64_t columns = 7;
    const Tensor x = fill("x", {rows, columns}, 0.3, 1);
    const std::vector<float> y = sum(Variable(x), {0}).data().to_vector<float>();
    for (int64_t c = 0; c < columns; ++c) {
      float total = 0;
      for (int64_t b = 0; b < rows; b += 128) {
        float block = 0;
        for (int64_t r = b; r < std::min(rows, b + 128); ++r) block += x.data_const<float>()[r * columns + c];
        total += block;
      }
      EXPECT_EQ(y[size_t(c)], total) << rows << " rows, column " << c;
    }
  }
}

}  // namespace
}  // namespace lowbit::test
