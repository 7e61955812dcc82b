#include "autograd/ops/residual.h"

#include <gtest/gtest.h>

#include "autograd/core/node.h"
#include "autograd/ops/broadcast.h"
#include "tensor/core/context.h"
#include "tests/support/op_case.h"

namespace lowbit::test {
namespace {

using In = std::span<const Variable>;

std::vector<InputSpec> inputs(const Shape& s) {
  return {{.name = "x", .shape = s}, {.name = "branch", .shape = s}};
}
Variable zeros(const Shape& s) { return Variable(Tensor::zeros(s)); }

const bool registered = register_op_cases(
    "Residual",
    {{.name = "sum",
      .inputs = inputs({5, 7, 3}),
      .fn = [](In v) { return residual(v[0], v[1], 0); },
      .sizes = [](int64_t n) { return inputs({n}); },
      .allows_empty = true,
      .misuse = {{"shapes",
                  [] {
                    residual(zeros({2, 3}), zeros({3}), 0);
                  },
                  "residual: x and branch must have one shape of at least one dimension (got "
                  "x=[2, 3] f32 cpu, branch=[3] f32 cpu)"},
                 {"dtypes", [] { residual(zeros({2}), Variable(Tensor::zeros({2}, DType::f64)), 0); },
                  "residual: operands must share a dtype (got x=[2] f32 cpu, branch=[2] f64 "
                  "cpu)"},
                 {"probability", [] { residual(zeros({2}), zeros({2}), 1); },
                  "residual: p must be in [0, 1) (got 1)"}},
      .perf = {.inputs = inputs({64, 197, 192})}},
     {.name = "dropped",
      .inputs = inputs({40, 3, 2}),
      .fn = [](In v) { return residual(v[0], v[1], 0.3); },
      .sizes =
          [](int64_t n) {
            return inputs({n, 3});
          },
      .allows_empty = true,
      .perf = {.inputs = inputs({64, 197, 192})}},
     {.name = "dropped_long", .inputs = inputs({3, 9001}), .fn = [](In v) {
        return residual(v[0], v[1], 0.5);
      }}});

/// The composition that models were written in, gradients and draws included.
TEST(Residual, EqualsItsComposition) {
  for (const double p : {0.0, 0.3}) {
    const Tensor x = make_input(inputs({50, 7, 11})[0]), b = make_input(inputs({50, 7, 11})[1]);
    const Tensor gy = make_input({.name = "gy", .shape = x.shape()});
    const auto run = [&](const auto& f) {
      context().generator = Generator(5);
      const Variable v(x, true), w(b, true), y = f(v, w);
      y.backward(gy);
      return std::tuple(y.data(), v.grad(), w.grad(), context().generator.state());
    };
    const auto fused = run([p](const Variable& v, const Variable& w) { return residual(v, w, p); });
    const auto composed = run([p](const Variable& v, const Variable& w) { return add(v, drop_path(w, p)); });
    EXPECT_EQ(difference(std::get<0>(fused), std::get<0>(composed)), "");
    EXPECT_EQ(difference(std::get<1>(fused), std::get<1>(composed)), "");
    EXPECT_EQ(difference(std::get<2>(fused), std::get<2>(composed)), "");
    EXPECT_EQ(std::get<3>(fused), std::get<3>(composed));
  }
}

TEST(Residual, GradientOfXIsShared) {
  const Variable x(Tensor::zeros({4, 3}), true), b(Tensor::zeros({4, 3}), true);
  const Tensor gy = Tensor::full({4, 3}, 2);
  residual(x, b, 0).backward(gy);
  EXPECT_EQ(x.grad().view().data, gy.view().data);
  EXPECT_EQ(b.grad().view().data, gy.view().data);
}

}  // namespace
}  // namespace lowbit::test
