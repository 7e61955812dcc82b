#include "autograd/ops/broadcast.h"

#include "tests/support/op_case.h"

namespace lowbit::test {
namespace {

using Binary = Variable (*)(const Variable&, const Variable&);

std::vector<InputSpec> inputs(Shape a, Shape b, double lo, double hi) {
  return {{.name = "a", .shape = a}, {.name = "b", .shape = b, .lo = lo, .hi = hi}};
}

/// Every way in which shapes can meet, for one op; the divisor stays away from zero.
std::vector<OpCase> cases(const std::string& op, Binary f, double lo, double hi) {
  const Function fn = [f](std::span<const Variable> v) { return f(v[0], v[1]); };
  const auto zeros = [](Shape s, DType t) { return Variable(Tensor::zeros(s, t)); };
  return {{.name = op + "_same",
           .inputs = inputs({4, 5, 6}, {4, 5, 6}, lo, hi),
           .fn = fn,
           .sizes = [=](int64_t n) { return inputs({n}, {n}, lo, hi); },
           .allows_empty = true,
           .misuse = {{"shapes",
                       [=] {
                         f(zeros({8, 197, 192}, DType::f32), zeros({196, 192}, DType::f32));
                       },
                       op + ": shapes cannot be broadcast (got a=[8, 197, 192], b=[196, 192])"},
                      {"dtypes", [=] { f(zeros({2}, DType::f32), zeros({2}, DType::f64)); },
                       op + ": operands must share a dtype (got a=[2] f32 cpu, b=[2] f64 cpu)"}},
           .perf = {.inputs = inputs({64, 197, 192}, {64, 197, 192}, lo, hi)}},
          {.name = op + "_vector",
           .inputs = inputs({3, 5, 7}, {7}, lo, hi),
           .fn = fn,
           .sizes =
               [=](int64_t n) {
                 return inputs({3, n}, {n}, lo, hi);
               },
           .perf = {.inputs = inputs({64, 197, 192}, {192}, lo, hi)}},
          {.name = op + "_middle",
           .inputs = inputs({2, 3, 4, 5}, {3, 1, 5}, lo, hi),
           .fn = fn,
           .sizes =
               [=](int64_t n) {
                 return inputs({2, 3, n}, {1, 3, 1}, lo, hi);
               },
           .perf = {.inputs = inputs({64, 197, 192}, {1, 197, 192}, lo, hi)}},
          {.name = op + "_both_sides", .inputs = inputs({4, 1, 6}, {5, 1}, lo, hi), .fn = fn},
          {.name = op + "_scalar", .inputs = inputs({6, 7}, {1}, lo, hi), .fn = fn, .sizes = [=](int64_t n) {
             return inputs({n}, {1}, lo, hi);
           }}};
}

const bool registered_add = register_op_cases("Add", cases("add", add, -1, 1));
const bool registered_sub = register_op_cases("Sub", cases("sub", sub, -1, 1));
const bool registered_mul = register_op_cases("Mul", cases("mul", mul, -1, 1));
const bool registered_div = register_op_cases("Div", cases("div", div, 0.5, 2));

}  // namespace
}  // namespace lowbit::test
