#include "autograd/ops/layer_norm.h"

#include "autograd/ops/broadcast.h"
#include "autograd/ops/pointwise.h"
#include "tests/support/op_case.h"

namespace lowbit::test {
namespace {

std::vector<InputSpec> inputs(Shape x) {
  const int64_t c = x[-1];
  return {{.name = "x", .shape = x, .lo = -2, .hi = 3},
          {.name = "gamma", .shape = {c}, .lo = 0.5, .hi = 1.5},
          {.name = "beta", .shape = {c}}};
}

const Function kFn = [](std::span<const Variable> v) { return layer_norm(v[0], v[1], v[2], 1e-6); };

Variable zeros(Shape s) { return Variable(Tensor::zeros(s)); }

const bool registered = register_op_cases(
    "LayerNorm",
    {{.name = "rows9", .inputs = inputs({2, 7, 9}), .fn = kFn},
     {.name = "rows192",
      .inputs = inputs({3, 5, 192}),
      .fn = kFn,
      .sizes =
          [](int64_t n) {
            return inputs({n < 100 ? n : 2, n});
          },
      .misuse =
          {{"gamma",
            [] {
              layer_norm(zeros({2, 8}), zeros({7}), zeros({8}), 1e-6);
            },
            "layer_norm: gamma and beta must be [x.shape[-1]] (got x=[2, 8] f32 cpu, gamma=[7] f32 cpu, "
            "beta=[8] f32 cpu)"},
           {"eps",
            [] {
              layer_norm(zeros({2, 8}), zeros({8}), zeros({8}), 0);
            },
            "layer_norm: eps must be positive (got 0)"},
           {"dtype",
            [] {
              layer_norm(Variable(Tensor::zeros({2, 8}, DType::f64)), zeros({8}), zeros({8}), 1e-6);
            },
            "layer_norm: operands must share a dtype (got x=[2, 8] f64 cpu, gamma=[8] f32 cpu)"}},
      .perf = {.inputs = inputs({64, 197, 192})}},
     {.name = "many_rows", .inputs = inputs({301, 33}), .fn = kFn},
     {.name = "beside_a_sum",  // whose gradient is there before
      .inputs = inputs({4, 3, 40}),
      .fn = [](std::span<const Variable> v) {
        const Variable x = scale(v[0], 2);
        return add(x, layer_norm(x, v[1], v[2], 1e-6));
      }}});

}  // namespace
}  // namespace lowbit::test
