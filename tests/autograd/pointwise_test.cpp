#include "autograd/ops/pointwise.h"

#include "tests/support/op_case.h"

namespace lowbit::test {
namespace {

using Unary = Variable (*)(const Variable&);

OpCase unary(const char* name, Function f, double lo, double hi, Avoid avoid = {}) {
  const auto input = [=](Shape s) {
    return std::vector<InputSpec>{{.name = "x", .shape = s, .lo = lo, .hi = hi, .avoid = avoid}};
  };
  const std::string text = std::string(name) + ": x must be f32 or f64 (got x=[2, 3] i64 cpu)";
  return {.name = name,
          .inputs = input({5, 7, 11}),
          .fn = f,
          .sizes = [input](int64_t n) { return input({n}); },
          .allows_empty = true,
          .misuse = {{"integers",
                      [f] {
                        const Variable v[] = {Variable(Tensor::zeros({2, 3}, DType::i64))};
                        f(v);
                      },
                      text}},
          .perf = {.inputs = input({64, 197, 192})}};
}
OpCase unary(const char* name, Unary f, double lo, double hi, Avoid avoid = {}) {
  return unary(
      name, [f](std::span<const Variable> v) { return f(v[0]); }, lo, hi, avoid);
}

OpCase clamp_case() {
  OpCase c = unary("clamp", [](std::span<const Variable> v) { return clamp(v[0], -0.5, 0.5); }, -1, 1,
                   {1, 0.5, 1e-3});
  c.misuse.push_back({"order", [] { clamp(Variable(Tensor::zeros({2})), 1, -1); },
                      "clamp: lo must not exceed hi (got lo=1, hi=-1)"});
  return c;
}

const Avoid kKinkAtZero{0, 0, 1e-3};

const bool registered = register_op_cases(
    "Pointwise",
    {unary("gelu", gelu, -4, 4), unary("gelu_tanh", gelu_tanh, -4, 4),
     unary("relu", relu, -1, 1, kKinkAtZero), unary("exp", exp, -3, 3), unary("log", log, 0.1, 4),
     unary("sqrt", sqrt, 0.1, 4), unary("tanh", tanh, -3, 3), unary("sigmoid", sigmoid, -5, 5),
     unary("neg", neg, -1, 1), unary("square", square, -2, 2), unary("abs", abs, -1, 1, kKinkAtZero),
     unary(
         "scale", [](std::span<const Variable> v) { return scale(v[0], -1.7); }, -1, 1),
     unary(
         "add_scalar", [](std::span<const Variable> v) { return add_scalar(v[0], 0.3); }, -1, 1),
     clamp_case()});

}  // namespace
}  // namespace lowbit::test
