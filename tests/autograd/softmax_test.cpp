#include "autograd/ops/softmax.h"

#include <gtest/gtest.h>

#include "tests/support/op_case.h"

namespace lowbit::test {
namespace {

OpCase row_case(const char* name, Variable (*f)(const Variable&), Shape shape, double range) {
  const auto input = [range](Shape s) {
    return std::vector<InputSpec>{{.name = "x", .shape = s, .lo = -range, .hi = range}};
  };
  const std::string op = std::string(name).substr(0, std::string(name).find('_') == 7 ? 7 : 11);
  return {.name = name,
          .inputs = input(shape),
          .fn = [f](std::span<const Variable> v) { return f(v[0]); },
          .sizes =
              [input](int64_t n) {
                return input({2, n});
              },
          .misuse = {{"scalar", [f] { f(Variable(Tensor::zeros(Shape{}))); },
                      op + ": x must have at least one dimension (got x=[] f32 cpu)"},
                     {"integers",
                      [f] {
                        f(Variable(Tensor::zeros({2, 3}, DType::i64)));
                      },
                      op + ": x must be f32 or f64 (got x=[2, 3] i64 cpu)"}},
          .perf = {.inputs = input({64, 3, 197, 197})}};
}

const bool registered = register_op_cases("Softmax", {row_case("softmax_rows13", softmax, {2, 3, 13}, 4),
                                                      row_case("softmax_rows197", softmax, {5, 197}, 8)});
const bool registered_log =
    register_op_cases("LogSoftmax", {row_case("log_softmax_rows13", log_softmax, {2, 3, 13}, 4),
                                     row_case("log_softmax_rows1000", log_softmax, {3, 1000}, 8)});

TEST(Softmax, SurvivesLargeValues) {
  const float x[] = {1000, 999, -1000};
  const Tensor y = softmax(Variable(Tensor::from(x, {1, 3}))).data();
  const std::vector<float> v = y.to_vector<float>();
  EXPECT_NEAR(v[0], 0.7310586f, 1e-6);
  EXPECT_NEAR(v[1], 0.2689414f, 1e-6);
  EXPECT_EQ(v[2], 0.f);
}

}  // namespace
}  // namespace lowbit::test
