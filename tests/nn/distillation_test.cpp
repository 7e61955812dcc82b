// Losses against a teacher: the ops' properties, and every published loss with its gradients.

#include "nn/loss/distillation.h"

#include <gtest/gtest.h>

#include "autograd/core/node.h"
#include "autograd/ops/broadcast.h"
#include "autograd/ops/cross_entropy.h"
#include "autograd/ops/pointwise.h"
#include "tests/support/golden.h"
#include "tests/support/op_case.h"

namespace lowbit::test {
namespace {

std::vector<InputSpec> two(Shape s) {
  return {{.name = "student", .shape = s, .lo = -2, .hi = 2},
          {.name = "teacher", .shape = s, .lo = -1, .hi = 3}};
}

OpCase directions() {
  return {.name = "direction_distance",
          .inputs = two({2, 3, 5}),
          .fn = [](std::span<const Variable> v) { return direction_distance(v[0], v[1]); },
          .sizes =
              [](int64_t n) {
                return two({1, n + 1});
              },
          .misuse = {{"shapes",
                      [] {
                        direction_distance(Variable(Tensor::zeros({2, 3})), Variable(Tensor::zeros({3, 2})));
                      },
                      "direction_distance: operands must have one shape (got a=[2, 3] f32 cpu, b=[3, 2] f32 "
                      "cpu)"}}};
}

OpCase score_maps() {
  return {
      .name = "score_map_loss",
      .inputs = two({2, 5, 6}),
      .fn =
          [](std::span<const Variable> v) {
            const Variable s = score_map(v[0], 2), t = score_map(v[1], 2);
            const ScoreMaps student[] = {{s, scale(s, 2), s}, {s, t, s}}, teacher[] = {{t, t, t}, {t, s, s}};
            return score_map_loss(student, teacher, true);
          },
      .misuse = {
          {"layers",
           [] {
             const ScoreMaps one[1];
             score_map_loss(one, {}, false);
           },
           "score_map_loss: student and teacher must have as many layers, at least one (got 1 and 0)"}}};
}

OpCase tokens() {
  return {.name = "token_loss",
          .inputs = {{.name = "student_0", .shape = {2, 6, 4}, .lo = -2, .hi = 2},
                     {.name = "student_1", .shape = {2, 6, 4}, .lo = -1, .hi = 1},
                     {.name = "teacher_0", .shape = {2, 5, 4}, .lo = -1, .hi = 3},
                     {.name = "teacher_1", .shape = {2, 5, 4}, .lo = -1, .hi = 3}},
          .fn = [](std::span<const Variable> v) { return token_loss(v.first(2), v.last(2)); },
          .misuse = {{"tokens",
                      [] {
                        const Variable s[] = {Variable(Tensor::zeros({1, 2, 3}))},
                                       t[] = {Variable(Tensor::zeros({1, 3, 3}))};
                        token_loss(s, t);
                      },
                      "token_loss: features must be [batch, tokens, width], the student's with at least the "
                      "teacher's tokens (got student=[1, 2, 3] f32 cpu, teacher=[1, 3, 3] f32 cpu)"}}};
}

Tensor some_labels(int64_t n, int64_t classes) {
  std::vector<int64_t> y;
  for (int64_t i = 0; i < n; ++i) y.push_back(i * 7 % classes);
  return Tensor::from(std::span<const int64_t>(y), {n});
}

OpCase consistency() {
  return {.name = "consistency_loss",
          .inputs = {{.name = "logits", .shape = {9, 7}, .lo = -2, .hi = 3}},
          .fn =
              [](std::span<const Variable> v) {
                return consistency_loss(v[0], some_labels(v[0].size(0), v[0].size(1)), 3, 0.1);
              },
          .misuse = {{"splits",
                      [] {
                        consistency_loss(Variable(Tensor::zeros({4, 3})), some_labels(4, 3), 3, 0);
                      },
                      "consistency_loss: splits must be at least 2 and divide the batch (got splits=3, "
                      "logits=[4, 3] f32 cpu)"}}};
}

const bool registered =
    register_op_cases("Distillation", {directions(), score_maps(), tokens(), consistency()});

TEST(Distillation, DistanceOfOneDirectionIsZeroAndHasNoSlope) {
  const Variable a(fill("a", {3, 4}, 0, 1), true);
  const Variable d = direction_distance(a, Variable(a.data().clone()));
  d.backward();
  EXPECT_LT(d.data().item<float>(), 1e-11f);
  EXPECT_EQ(a.grad().to_vector<float>(), std::vector<float>(12, 0));
}

TEST(Distillation, MaskedScoresDoNotCount) {
  const float all[] = {1, -100, 2, -2e9f}, kept[] = {1, 0, 2, 0};
  const Variable t(fill("t", {4}, 0, 1));
  EXPECT_EQ(direction_distance(Variable(Tensor::from(all, {4})), t).data().item<float>(),
            direction_distance(Variable(Tensor::from(kept, {4})), t).data().item<float>());
}

// ---------------------------------------------------------------- ofq/losses

using Inputs = std::map<std::string, Variable>;

std::vector<ScoreMaps> maps(const GoldenFile& g, const std::string& whose) {
  std::vector<ScoreMaps> layers;
  for (int l = 0; g.has(str_cat("attn/", whose, "_", l, "_0")); ++l) {
    const auto map = [&](int i) { return Variable(g.tensor(str_cat("attn/", whose, "_", l, "_", i))); };
    layers.push_back({map(1), map(2), map(3)});
  }
  return layers;
}

/// Features of student and teacher after every layer; the last of the student is an input of the case.
Variable features_loss(const GoldenFile& g, const Variable& last, bool all) {
  std::vector<Variable> student, teacher;
  for (int l = 0; g.has(str_cat("common/feat_", l)); ++l) {
    student.emplace_back(g.tensor(str_cat("common/feat_", l)));
    teacher.emplace_back(g.tensor(str_cat("common/teacher_feat_", l)));
  }
  student.back() = last;
  const size_t from = all ? 0 : student.size() - 1;
  return token_loss(std::span(student).subspan(from), std::span(teacher).subspan(from));
}

/// The loss of a published case.
Variable published(const std::string& name, const nlohmann::json& s, Inputs& in, const GoldenFile& g) {
  const double smoothing = s.value("smoothing", 0.0), temperature = s.value("T", 1.0);
  const Tensor label = g.tensor("common/label"), soft_label = g.tensor("common/soft_label");
  const auto hard_and_soft = [&](const Tensor& targets) {
    return in.count("cls") ? distillation_loss(in["cls"], in["dist"], in["tcls"], targets)
                           : distillation_loss(in["out"], {}, in["t"], targets);
  };
  if (name.starts_with("kl_soft")) return teacher_cross_entropy(in["out"], in["t"], temperature);
  if (name == "cross_entropy" || name == "label_smoothing") return cross_entropy(in["out"], label, smoothing);
  if (name == "soft_target_ce") return soft_cross_entropy(in["out"], soft_label);
  if (name == "kd_softtargetce" || name.ends_with("heads_soft") || name.ends_with("head_soft"))
    return hard_and_soft(soft_label);
  if (name.ends_with("heads_hard") || name.ends_with("head_hard")) return hard_and_soft(label);
  if (name == "kd_qk" || name == "kd_qkv")
    return add(hard_and_soft(label), score_map_loss(maps(g, "s"), maps(g, "t"), name == "kd_qkv"));
  if (name == "direction_matching")
    return add(direction_distance(in["s1"], in["t1"]), direction_distance(in["s2"], in["t2"]));
  if (name.starts_with("token_mse"))
    return add(teacher_cross_entropy(in["out"], in["t"]),
               scale(features_loss(g, in["fs"], name.ends_with("all")), s.at("alpha")));
  if (name.starts_with("jsd"))
    return consistency_loss(in["out"], label, name[4] - '0', smoothing, s.at("alpha"));
  return {};
}

TEST(DistillationGolden, EveryOfqLoss) {
  LOWBIT_GOLDEN_OR_SKIP(path, "ofq/losses.safetensors");
  const GoldenFile g(path);
  for (const auto& [name, settings] : g.cases()) {
    if (name.starts_with("dampening")) continue;  // tests/quant
    SCOPED_TRACE(name);
    Inputs in;
    for (const std::string& full : g.names_with_prefix(name + "/in/"))
      in[full.substr(name.size() + 4)] = Variable(g.tensor(full), true);
    const Variable loss = published(name, settings, in, g);
    ASSERT_TRUE(loss.defined()) << "no loss here is called " << name;
    loss.backward();
    expect_close(loss.data(), g.tensor(name + "/out/loss"), g.rtol(), g.atol(), name);
    for (const std::string& full : g.names_with_prefix(name + "/g_in/")) {
      const Variable& v = in.at(full.substr(name.size() + 6));
      const Tensor grad = v.grad().defined() ? v.grad() : Tensor::zeros(v.shape());
      expect_close(grad, g.tensor(full), g.rtol(), g.atol(), full);
    }
  }
}

}  // namespace
}  // namespace lowbit::test
