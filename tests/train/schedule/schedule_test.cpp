#include "train/schedule/schedule.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tensor/core/error.h"
#include "tests/support/golden.h"
#include "train/schedule/epoch_plan.h"

namespace lowbit {
namespace {

ScheduleOptions options_of(const nlohmann::json& c) {
  ScheduleOptions o;
  o.kind = c.at("sched");
  o.lr = c.at("lr"), o.min_lr = c.at("min_lr"), o.warmup_lr = c.at("warmup_lr"),
  o.warmup = c.at("warmup_epochs");
  o.total = c.at("epochs"), o.cooldown = c.at("cooldown_epochs"), o.decay_rate = c.at("decay_rate");
  o.patience = c.at("patience_epochs"), o.cycle_mul = c.at("lr_cycle_mul"),
  o.cycle_limit = c.at("lr_cycle_limit");
  if (c.at("decay_epochs").is_array())
    o.milestones = c.at("decay_epochs").get<std::vector<double>>();
  else
    o.decay_interval = c.at("decay_epochs");
  return o;
}

TEST(Schedule, EveryCaseOfTheGoldenFile) {
  LOWBIT_GOLDEN_OR_SKIP(path, "ofq/schedule.safetensors");
  const test::GoldenFile golden(path);
  ASSERT_FALSE(golden.cases().empty());
  for (const auto& [name, c] : golden.cases()) {
    Schedule s(options_of(c));
    const auto expected = golden.tensor(name + "/out/lr").to_vector<double>();
    const double start = c.value("start", 0.0);
    const auto metrics = c.value("metrics", std::vector<double>());
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_NEAR(s.lr(start + double(i)), expected[i], golden.rtol() * expected[i])
          << name << " epoch " << i;
      if (i < metrics.size()) s.report(start + double(i) + 1, metrics[i]);
    }
    EXPECT_EQ(s.run_length(), c.at("total_epochs").get<double>()) << name;
  }
}

TEST(EpochPlan, EveryCaseOfTheGoldenFile) {
  LOWBIT_GOLDEN_OR_SKIP(path, "vvtq/epoch_plan.safetensors");
  const test::GoldenFile golden(path);
  for (const auto& name : golden.names()) {
    const auto c = golden.meta_json(name);
    ScheduleOptions s;
    s.total = c.at("epochs"), s.lr = c.at("lr"), s.min_lr = c.at("min_lr");
    s.warmup = c.at("warmup_epochs"), s.warmup_lr = c.at("warmup_lr");
    EpochPlanOptions o{c.at("epochs"), c.at("warmup_epochs"), c.at("num_crops"),
                       c.value("resume_epoch", int64_t(-1))};
    const auto plan = epoch_plan(o, Schedule(s));
    const Tensor table = golden.tensor(name);
    ASSERT_EQ(int64_t(plan.size()), table.size(0)) << name;
    const auto rows = table.to_vector<float>();
    for (size_t i = 0; i < plan.size(); ++i) {
      const float* row = &rows[4 * i];
      EXPECT_EQ(float(plan[i].epoch), row[0]) << name << " " << i;
      EXPECT_EQ(float(plan[i].crops), row[1]) << name << " " << i;
      EXPECT_NEAR(plan[i].lr, row[2], golden.rtol() * std::fabs(row[2]) + golden.atol()) << name << " " << i;
      EXPECT_NEAR(plan[i].lambda, row[3], golden.rtol() * std::fabs(row[3]) + golden.atol())
          << name << " " << i;
    }
  }
}

TEST(Schedule, NoiseDrawsTheNumbersOfTorchRandn) {
  // torch.manual_seed(0); torch.randn(2) = 1.5410, -0.2934;  seed 42: 0.3367
  EXPECT_NEAR(bounded_normal(0, 10), 1.5410, 5e-5);
  EXPECT_NEAR(bounded_normal(0, 1), -0.2934, 5e-5);
  EXPECT_NEAR(bounded_normal(42, 10), 0.3367, 5e-5);
  ScheduleOptions o;
  o.kind = "constant", o.lr = 1, o.noise_from = 2, o.noise_to = 4, o.noise_seed = 0;
  const Schedule s(o);
  EXPECT_EQ(s.lr(1), 1);
  EXPECT_EQ(s.lr(2), 1 + bounded_normal(2, 0.67));
  EXPECT_EQ(s.lr(4), 1);
}

TEST(Schedule, ScalingWarmUpMultipliesTheCurve) {
  ScheduleOptions o;
  o.lr = 1e-3, o.min_lr = 0, o.total = 20, o.warmup = 2, o.warmup_scales = true, o.interval = 1.0 / 40;
  const Schedule s(o);
  EXPECT_NEAR(s.lr(0), 1e-3 / 80, 1e-15);
  EXPECT_NEAR(s.lr(1), 1e-3 * 41 / 80 * 0.5 * (1 + std::cos(M_PI / 20)), 1e-15);
  EXPECT_NEAR(s.lr(10), 5e-4, 1e-15);
  EXPECT_EQ(s.lr(20), 0);
}

TEST(Schedule, PlateauStateSurvivesACheckpoint) {
  ScheduleOptions o;
  o.kind = "plateau", o.patience = 1, o.decay_rate = 0.5, o.lr = 1;
  Schedule a(o);
  for (int t = 1; t <= 3; ++t) a.report(t, 1);
  EXPECT_EQ(a.lr(3), 0.5);
  Schedule b(o);
  b.load(a.state());
  for (int t = 4; t <= 5; ++t) a.report(t, 1), b.report(t, 1);
  EXPECT_EQ(a.lr(5), 0.25);
  EXPECT_EQ(b.lr(5), 0.25);
  EXPECT_THROW(Schedule(ScheduleOptions{.kind = "linear", .milestones = {}}), Error);
}

}  // namespace
}  // namespace lowbit
