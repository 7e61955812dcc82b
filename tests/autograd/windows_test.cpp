#include "autograd/ops/windows.h"

#include <gtest/gtest.h>

#include "autograd/core/node.h"
#include "tests/support/op_case.h"

namespace lowbit {
namespace {

using namespace test;
using In = std::span<const Variable>;

constexpr WindowGrid kPadded{.height = 5, .width = 7, .size = 4, .shift_y = 1, .shift_x = 2};
constexpr WindowGrid kWhole{.height = 56, .width = 56, .size = 7, .shift_y = 3, .shift_x = 3};

const bool cases = register_op_cases(
    "Windows", {{.name = "partition",
                 .inputs = {{.name = "x", .shape = {2, 5, 7, 3}}},
                 .fn = [](In v) { return window_partition(v[0], v[0].size(1) == 56 ? kWhole : kPadded); },
                 .sizes = [](int64_t n) -> std::vector<InputSpec> {
                   return {{.name = "x", .shape = {1, 5, 7, n}}};
                 },
                 .allows_empty = true,
                 .misuse = {{"map",
                             [] {
                               window_partition(Variable(Tensor::zeros({2, 7, 5, 3})), kPadded);
                             },
                             "window_partition: x must be [B, 5, 7, C] (got x=[2, 7, 5, 3] f32 cpu)"},
                            {"shift",
                             [] {
                               window_partition(Variable(Tensor::zeros({1, 4, 4, 1})),
                                                {.height = 4, .width = 4, .size = 2, .shift_y = 2});
                             },
                             "window_partition: shifts must lie in [0, size) (got size=2, shift=2, 0)"}},
                 .perf = {.inputs = {{.name = "x", .shape = {8, 56, 56, 96}}}}},
                {.name = "merge",
                 .inputs = {{.name = "x", .shape = {8, 16, 3}}},
                 .fn = [](In v) { return window_merge(v[0], kPadded); },
                 .misuse = {{"windows", [] { window_merge(Variable(Tensor::zeros({6, 16, 3})), kPadded); },
                             "window_merge: x must be [B·4, 16, C] (got x=[6, 16, 3] f32 cpu)"}}},
                {.name = "round_trip",
                 .inputs = {{.name = "x", .shape = {1, 56, 56, 2}}},
                 .fn = [](In v) { return window_merge(window_partition(v[0], kWhole), kWhole); },
                 .gradient = Gradient::identity}});

/// Every token against its definition: pad, roll, cut.
TEST(Windows, PartitionPadsRollsAndCuts) {
  const WindowGrid g = kPadded;
  Tensor x = Tensor::empty({2, g.height, g.width, 1});
  for (int64_t i = 0; i < x.numel(); ++i) x.data<float>()[i] = float(i + 1);
  const std::vector<float> y = window_partition(Variable(x), g).data().to_vector<float>();
  size_t at = 0;
  for (int64_t b = 0; b < 2; ++b)
    for (int64_t wy = 0; wy < 8; wy += 4)
      for (int64_t wx = 0; wx < 8; wx += 4)
        for (int64_t i = 0; i < 4; ++i)
          for (int64_t j = 0; j < 4; ++j) {
            const int64_t row = (wy + i + g.shift_y) % 8, column = (wx + j + g.shift_x) % 8;
            const bool inside = row < g.height && column < g.width;
            EXPECT_EQ(y[at++], inside ? float((b * g.height + row) * g.width + column + 1) : 0.f);
          }
  EXPECT_EQ(at, y.size());
}

}  // namespace
}  // namespace lowbit
