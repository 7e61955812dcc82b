#include "autograd/ops/cross_entropy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <map>

#include "autograd/core/variable.h"
#include "autograd/ops/broadcast.h"
#include "autograd/ops/pointwise.h"
#include "tests/support/golden.h"
#include "tests/support/op_case.h"

namespace lowbit::test {
namespace {

Variable zeros(Shape s, DType t = DType::f32) { return Variable(Tensor::zeros(s, t)); }

std::vector<InputSpec> labelled(int64_t rows, int64_t classes) {
  return {{.name = "logits", .shape = {rows, classes}, .lo = -3, .hi = 3},
          {.name = "labels", .shape = {rows}, .lo = 0, .hi = double(classes), .dtype = DType::i64}};
}
std::vector<InputSpec> pair(int64_t rows, int64_t classes, bool second = true) {
  return {{.name = "logits", .shape = {rows, classes}, .lo = -3, .hi = 3},
          {.name = "target", .shape = {rows, classes}, .lo = 0, .hi = 1, .differentiable = second}};
}

OpCase hard(const char* name, double smoothing) {
  return {.name = name,
          .inputs = labelled(5, 7),
          .fn = [=](std::span<const Variable> v) { return cross_entropy(v[0], v[1].data(), smoothing); },
          .sizes = [](int64_t n) { return labelled(3, n); },
          .misuse =
              {{"label",
                [] {
                  const int64_t y[] = {1, 9};
                  cross_entropy(zeros({2, 9}), Tensor::from(y, {2}));
                },
                "cross_entropy: labels must be in [0, 9) (got label 9 at row 1, logits=[2, 9] f32 cpu)"},
               {"count",
                [] {
                  cross_entropy(zeros({2, 9}), Tensor::zeros({3}, DType::i64));
                },
                "cross_entropy: labels must be [logits.shape[0]] (got logits=[2, 9] f32 cpu, labels=[3] i64 "
                "cpu)"},
               {"smoothing",
                [] {
                  cross_entropy(zeros({2, 9}), Tensor::zeros({2}, DType::i64), 1);
                },
                "cross_entropy: smoothing must be in [0, 1) (got 1)"},
               {"dimensions", [] { cross_entropy(zeros({9}), Tensor::zeros({9}, DType::i64)); },
                "cross_entropy: logits must be [batch, classes], neither empty (got logits=[9] f32 cpu)"}},
          .perf = {.inputs = labelled(1024, 1000)}};
}

OpCase teacher(const char* name, Variable (*f)(const Variable&, const Variable&, double),
               double temperature) {
  const std::string op = std::string(name).substr(0, std::string(name).rfind('_'));
  return {
      .name = name,
      .inputs = pair(5, 7),
      .fn = [=](std::span<const Variable> v) { return f(v[0], v[1], temperature); },
      .sizes = [](int64_t n) { return pair(n < 100 ? n : 3, n < 2 ? 2 : n); },
      .misuse =
          {{"temperature",
            [f] {
              f(zeros({2, 3}), zeros({2, 3}), 0);
            },
            op + ": temperature must be positive (got 0)"},
           {"shapes",
            [f] {
              f(zeros({2, 3}), zeros({3, 2}), 1);
            },
            op + ": logits and teacher must have one shape (got logits=[2, 3] f32 cpu, teacher=[3, 2] f32 "
                 "cpu)"}},
      .perf = {.inputs = pair(1024, 1000)}};
}

OpCase soft() {
  return {
      .name = "soft",
      .inputs = pair(5, 7, false),
      .fn = [](std::span<const Variable> v) { return soft_cross_entropy(v[0], v[1].data()); },
      .sizes = [](int64_t n) { return pair(3, n, false); },
      .misuse =
          {{"dtype",
            [] {
              soft_cross_entropy(zeros({2, 3}), Tensor::zeros({2, 3}, DType::f64));
            },
            "soft_cross_entropy: operands must share a dtype (got logits=[2, 3] f32 cpu, targets=[2, 3] f64 "
            "cpu)"}},
      .perf = {.inputs = pair(1024, 1000, false)}};
}

OpCase squared() {
  return {.name = "mse",
          .inputs = pair(5, 7),
          .fn = [](std::span<const Variable> v) { return mse(v[0], v[1]); },
          .sizes = [](int64_t n) { return pair(1, n); },
          .misuse = {{"shapes",
                      [] {
                        mse(zeros({2, 3}), zeros({3}));
                      },
                      "mse: operands must have one shape (got a=[2, 3] f32 cpu, b=[3] f32 cpu)"}}};
}

const bool registered =
    register_op_cases("CrossEntropy", {hard("labels", 0), hard("smoothed_labels", 0.1), soft(),
                                       teacher("teacher_cross_entropy_1", teacher_cross_entropy, 1),
                                       teacher("teacher_cross_entropy_2", teacher_cross_entropy, 2),
                                       teacher("kl_divergence_1", kl_divergence, 1),
                                       teacher("kl_divergence_3", kl_divergence, 3), squared()});

TEST(CrossEntropy, SurvivesLargeLogits) {
  const float z[] = {3e4f, -3e4f};
  const int64_t y[] = {1};
  Variable logits(Tensor::from(z, {1, 2}), true);
  const Variable loss = cross_entropy(logits, Tensor::from(y, {1}));
  loss.backward();
  EXPECT_EQ(loss.data().item<float>(), 6e4f);
  EXPECT_EQ(logits.grad().to_vector<float>(), (std::vector<float>{1, -1}));
}

TEST(CrossEntropy, DivergenceOfEqualDistributionsIsZero) {
  const Variable z(fill("z", {4, 9}, 0, 3));
  EXPECT_EQ(kl_divergence(z, z.detach(), 2).data().item<float>(), 0.f);
}

// ---- golden/vvtq
// -------------------------------------------------------------------------------------------------

void check_vvtq(const GoldenFile& g, const std::string& name, const Variable& z, const Variable& loss,
                const std::string& gradient) {
  z.zero_grad();
  loss.backward();
  expect_close(loss.data(), g.tensor(name + ".loss"), g.rtol(), g.atol(), name + " loss");
  expect_close(z.grad(), g.tensor(gradient), g.rtol(), g.atol(), name + " gradient");
}

TEST(CrossEntropy, GoldenSoftLabelLosses) {
  LOWBIT_GOLDEN_OR_SKIP(path, "vvtq/kd_loss.safetensors");
  const GoldenFile g(path);
  for (const std::string& full : g.names()) {
    if (!full.ends_with(".loss")) continue;
    const std::string name = full.substr(0, full.size() - 5);
    const Variable z(g.tensor("student_logits"), true);
    Variable loss;
    if (name == "distribution")
      loss = teacher_cross_entropy(z, Variable(g.tensor("teacher_logits")));
    else if (name == "temp2")
      loss = soft_cross_entropy(scale(z, 0.5), g.tensor("marginal_smoothing_k5.full"));
    else
      loss = soft_cross_entropy(z, g.tensor(name + ".full"));
    check_vvtq(g, name, z, loss, name + ".grad_logits");
  }
}

TEST(CrossEntropy, GoldenDistillationLoss) {
  LOWBIT_GOLDEN_OR_SKIP(path, "vvtq/distill_loss.safetensors");
  const GoldenFile g(path);
  const Tensor teacher = g.tensor("teacher");
  const std::vector<float> values = teacher.to_vector<float>();
  std::vector<int64_t> best;
  for (int64_t b = 0; b < teacher.size(0); ++b) {
    const float* row = values.data() + b * teacher.size(1);
    best.push_back(std::max_element(row, row + teacher.size(1)) - row);
  }
  const Tensor argmax = Tensor::from(std::span<const int64_t>(best), {teacher.size(0)}, teacher.device());
  for (const std::string& full : g.names()) {
    if (!full.ends_with(".loss")) continue;
    const std::string name = full.substr(0, full.size() - 5);  // "soft.a0.5.t1.0"
    const double alpha = std::strtod(name.c_str() + name.find(".a") + 2, nullptr);
    const double t = std::strtod(name.c_str() + name.find(".t") + 2, nullptr);
    const Variable z(g.tensor("outputs"), true), kd(g.tensor("outputs_kd"), true);
    const Variable base = cross_entropy(z, g.tensor("labels"));
    // The published soft term is the sum of the divergence over the batch, times T², over the number of
    // logits.
    const Variable term = name.starts_with("soft")
                              ? scale(kl_divergence(kd, Variable(teacher), t), t * t / double(kd.size(1)))
                              : cross_entropy(kd, argmax);
    check_vvtq(g, name, z, add(scale(base, 1 - alpha), scale(term, alpha)), name + ".grad_outputs");
    expect_close(kd.grad(), g.tensor(name + ".grad_outputs_kd"), g.rtol(), g.atol(), name + " kd gradient");
  }
}

}  // namespace
}  // namespace lowbit::test
