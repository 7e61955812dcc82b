// Whole training steps: against published traces, and the same bits however they are computed.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "autograd/core/node.h"
#include "autograd/ops/broadcast.h"
#include "autograd/ops/cross_entropy.h"
#include "nn/models/vit.h"
#include "tensor/core/context.h"
#include "tensor/core/thread_pool.h"
#include "tests/support/golden.h"
#include "train/optim/optimizer.h"
#include "train/schedule/schedule.h"
#include "train/step/quantize.h"

namespace lowbit::test {
namespace {

VitConfig golden_config(const nlohmann::json& c) {
  VitConfig v;
  v.name = "golden", v.distilled = true;
  v.image_size = c.value("img", 32), v.patch = c.value("patch_size", 8);
  v.width = c.at("C"), v.depth = c.at("depth"), v.heads = c.at("H"), v.classes = c.at("ncls");
  return v;
}

TensorMap part(const GoldenFile& file, const std::string& prefix) {
  TensorMap m;
  for (const auto& name : file.names_with_prefix(prefix)) m[name.substr(prefix.size())] = file.tensor(name);
  return m;
}

/// Soft cross entropy of the second head with the teacher's class head plus cross entropy of the first
/// (kd_hard_and_soft 1).
Variable distillation_loss(VisionTransformer& student, const Tensor& images, const Tensor& labels,
                           const Tensor& teacher_logits) {
  const auto h = student.heads(Variable(images));
  return add(teacher_cross_entropy(h.dist, Variable(teacher_logits)), cross_entropy(h.cls, labels));
}

// ---- ofq/model_small_deit: every float case

TEST(TrainingGolden, SmallDistilledModels) {
  LOWBIT_GOLDEN_OR_SKIP(path, "ofq/model_small_deit.safetensors");
  const GoldenFile file(path);
  int checked = 0;
  for (const auto& [name, c] : file.cases()) {
    if (!c.at("wbits").is_null()) continue;
    SCOPED_TRACE(name);
    ++checked;
    VisionTransformer model(golden_config(c), 0);
    model.load(part(file, name + "/p/"));
    const double tolerance = 1e-4;  // of the largest magnitude of each tensor
    model.train();
    Variable x(file.tensor(name + "/in/x"));
    x.set_requires_grad(true);
    const auto h = model.heads(x);
    const Variable loss =
        add(teacher_cross_entropy(h.dist, Variable(file.tensor(name + "/in/teacher_logits"))),
            cross_entropy(h.cls, file.tensor(name + "/in/label")));
    expect_close_to_largest(loss.data(), file.tensor(name + "/out/loss"), tolerance, "loss");
    expect_close_to_largest(h.cls.data(), file.tensor(name + "/out/cls"), tolerance, "cls");
    expect_close_to_largest(h.dist.data(), file.tensor(name + "/out/dist"), tolerance, "dist");
    loss.backward();
    expect_close_to_largest(x.grad(), file.tensor(name + "/g_in/x"), tolerance, "dx");
    const auto expected = part(file, name + "/g_p/");
    const auto parameters = model.parameters();
    EXPECT_EQ(expected.size(), parameters.size());
    for (const auto& p : parameters) {
      if (p.name.ends_with("qkv.bias")) {  // the key part is zero in exact arithmetic, the file has noise
        expect_close(p.parameter->var.grad(), expected.at(p.name), 1e-4, 1e-6, p.name);
        continue;
      }
      expect_close_to_largest(p.parameter->var.grad(), expected.at(p.name), tolerance, p.name);
    }
    model.eval();
    expect_close_to_largest(model(Variable(file.tensor(name + "/in/x"))).data(),
                            file.tensor(name + "/out/eval_logits"), tolerance, "evaluation");
  }
  EXPECT_GT(checked, 0);
}

// ---- ofq/train_adamw_float

struct Trace {
  const GoldenFile& file;
  std::string name;
  nlohmann::json c;
  VisionTransformer model, teacher;
  ParameterArena arena;
  Optimizer optimizer;
  Schedule schedule;
  std::vector<double> losses, rates;
  Tensor labels;
  int64_t steps_per_epoch;

  static OptimizerOptions optimizer_of(const nlohmann::json& c) {
    OptimizerOptions o;
    o.kind = c.at("opt"), o.weight_decay = c.at("weight_decay");
    return o;
  }
  static ScheduleOptions schedule_of(const nlohmann::json& c) {
    ScheduleOptions s;
    s.kind = c.at("sched"), s.lr = c.at("lr"), s.min_lr = c.at("min_lr");
    s.total = c.at("epochs"), s.warmup = c.at("warmup_epochs"), s.warmup_lr = c.at("warmup_lr");
    return s;
  }
  Trace(const GoldenFile& f, const std::string& n, const nlohmann::json& settings)
      : file(f),
        name(n),
        c(settings),
        model(golden_config(c), 0),
        teacher(golden_config(c), 0),
        arena(model.parameters()),
        optimizer(arena, optimizer_of(c)),
        schedule(schedule_of(c)),
        losses(f.tensor(n + "/out/loss").to_vector<double>()),
        rates(f.tensor(n + "/out/lr").to_vector<double>()),
        labels(f.tensor(n + "/in/y")),
        steps_per_epoch(c.at("steps").get<int64_t>() / c.at("epochs").get<int64_t>()) {
    teacher.load(part(f, n + "/teacher/"));
    teacher.train();  // the published loop never switches it; only its class head is used
    model.train();
  }

  Tensor batch(int64_t k) const {
    const int64_t b = c.at("batch");
    return fill(str_cat(name, "/x/", k), {b, 3, model.config().image_size, model.config().image_size}, 0, 2);
  }
  /// Loads the snapshot after k steps and its moments; false when they are not stored.
  bool start(int64_t k) {
    const std::string prefix = str_cat(name, "/step_", k, "/");
    const TensorMap p = part(file, prefix + "p/");
    if (p.empty()) return false;
    TensorMap state = optimizer.state();
    for (auto& [key, t] : state) {
      const std::string moment = key.starts_with("exp_avg_sq/") ? "v/" : "m/";
      if (key == "steps")
        t.fill(double(k));
      else if (k == 0)
        t.fill(0);
      else if (!file.has(prefix + moment + key.substr(key.find('/') + 1)))
        return false;
      else
        t.copy_from(file.tensor(prefix + moment + key.substr(key.find('/') + 1)));
    }
    optimizer.load(state);
    model.load(p);
    return true;
  }
  /// One step; checks the loss before it and the learning rate.
  void step(int64_t k, double loss_tolerance) {
    Tensor target;
    {
      NoGrad off;
      target = teacher.heads(Variable(batch(k))).cls.data();
    }
    optimizer.zero_grad();
    const Variable loss = distillation_loss(model, batch(k), labels.select(0, k).packed(), target);
    const double value = double(loss.data().item<float>()), expected = losses[size_t(k)];
    EXPECT_NEAR(value, expected, loss_tolerance * std::fabs(expected)) << "loss " << k;
    loss.backward();
    const double lr = schedule.lr(double(c.at("start_epoch").get<int64_t>() + k / steps_per_epoch));
    EXPECT_NEAR(lr, rates[size_t(k)], 1e-12) << "learning rate " << k;
    optimizer.step(lr);
  }
  /// After one step from a stored snapshot: 1e-3·lr, 2·lr where the gradient is rounding noise, and the
  /// rounding of the stored value.
  void expect_parameters(int64_t k) {
    const double lr = rates[size_t(k) - 1];
    for (size_t i = 0; i < arena.size(); ++i) {
      const ArenaSlice& s = arena.layout().slices[i];
      const auto got = arena.values().window(i).to_vector<float>(),
                 g = arena.grads().window(i).to_vector<float>();
      const auto want = file.tensor(str_cat(name, "/step_", k, "/p/", s.name)).to_vector<float>();
      ASSERT_EQ(got.size(), want.size()) << s.name;
      float largest = 0;
      for (float v : g) largest = std::max(largest, std::fabs(v));
      for (size_t j = 0; j < got.size(); ++j) {
        const bool key_bias = s.name.ends_with("qkv.bias") && j >= got.size() / 3 && j < got.size() / 3 * 2;
        const bool noise = key_bias || std::fabs(g[j]) < 1e-6f * largest;
        const double bound = (noise ? 2 : 1e-3) * lr + 1.2e-7 * std::fabs(double(want[j]));
        ASSERT_NEAR(got[j], want[j], bound) << s.name << "[" << j << "] after step " << k;
      }
    }
  }
};

TEST(TrainingGolden, ParameterGroups) {
  LOWBIT_GOLDEN_OR_SKIP(path, "ofq/train_adamw_float.safetensors");
  const GoldenFile file(path);
  for (const auto& [name, c] : file.cases()) {
    SCOPED_TRACE(name);
    Trace t(file, name, c);
    std::map<std::string, double> expected, got;
    for (const auto& group : c.at("param_groups"))
      for (const auto& p : group.at("params")) expected[p] = group.at("weight_decay");
    for (const ArenaSlice& s : t.arena.layout().slices)
      got[s.name] = s.decay ? t.optimizer.options().weight_decay : 0;
    EXPECT_EQ(got, expected);
  }
}

TEST(TrainingGolden, OneStepFromEverySnapshot) {
  LOWBIT_GOLDEN_OR_SKIP(path, "ofq/train_adamw_float.safetensors");
  const GoldenFile file(path);
  int checked = 0;
  for (const auto& [name, c] : file.cases()) {
    SCOPED_TRACE(name);
    Trace t(file, name, c);
    for (int64_t k = 0; k < c.at("steps").get<int64_t>(); ++k) {
      if (!t.start(k)) continue;
      t.step(k, 1e-5);
      if (!file.names_with_prefix(str_cat(name, "/step_", k + 1, "/p/")).empty())
        t.expect_parameters(k + 1), ++checked;
    }
  }
  EXPECT_GT(checked, 0);
}

TEST(TrainingGolden, EveryLossOfTheWholeRun) {
  LOWBIT_GOLDEN_OR_SKIP(path, "ofq/train_adamw_float.safetensors");
  const GoldenFile file(path);
  for (const auto& [name, c] : file.cases()) {
    SCOPED_TRACE(name);
    Trace t(file, name, c);
    ASSERT_TRUE(t.start(0));
    for (int64_t k = 0; k < c.at("steps").get<int64_t>(); ++k) t.step(k, 1e-4);
  }
}

// ---- one result, many ways

struct SmallRun {
  std::vector<float> losses;
  TensorMap state;
};

Options bits(const char* w, const char* a) {
  Options o(*find_verb("train"));
  o.set("wbits", w, OptionOrigin::command_line), o.set("abits", a, OptionOrigin::command_line);
  return o;
}

/// Four AdamW steps of a quantized two-block model with drop path.
SmallRun small_run(bool recompute, const Options& o = bits("4", "4"), double lr = 1e-3) {
  VitConfig c;
  c.name = "small", c.image_size = 32, c.patch = 8, c.width = 48, c.depth = 2, c.heads = 3, c.classes = 7;
  c.drop_path = 0.3;
  VisionTransformer model(c, 5);
  quantize(model, o);
  model.recompute_blocks = recompute;
  model.train();
  context().generator = Generator(9, 1);
  const int64_t classes[] = {3, 0, 6, 1};
  const Tensor labels = Tensor::from(std::span<const int64_t>(classes), {4});
  {  // the first pass sets the scales
    NoGrad off;
    model.eval();
    model(Variable(fill("calibration", {4, 3, 32, 32}, 0, 2)));
    for (auto& [name, q] : quantizers(model))
      if (q->quant_state() == QuantState::observe) q->set_quant_state(QuantState::fixed, "calibrated");
    model.train();
  }
  ParameterArena arena(model.parameters());
  Optimizer optimizer(arena, {});
  SmallRun r;
  for (int k = 0; k < 4; ++k) {
    optimizer.zero_grad();
    const Variable loss =
        cross_entropy(model(Variable(fill(str_cat("x", k), {4, 3, 32, 32}, 0, 2))), labels, 0.1);
    r.losses.push_back(loss.data().item<float>());
    loss.backward();
    optimizer.step(lr);
  }
  for (const auto& [name, t] : model.state()) r.state[name] = t.clone();
  return r;
}

void expect_same_bits(const SmallRun& a, const SmallRun& b) {
  EXPECT_EQ(a.losses, b.losses);
  ASSERT_EQ(a.state.size(), b.state.size());
  for (const auto& [name, t] : a.state)
    EXPECT_EQ(std::memcmp(t.view().data, b.state.at(name).view().data, t.bytes()), 0) << name;
}

TEST(Training, RecomputedBlocksGiveTheSameBits) { expect_same_bits(small_run(false), small_run(true)); }

TEST(Training, AnyNumberOfThreadsGivesTheSameBits) {
  const int before = threads();
  set_threads(1);
  const SmallRun one = small_run(false);
  for (int n : {2, 3}) {
    set_threads(n);
    expect_same_bits(one, small_run(false));
  }
  set_threads(before);
}

TEST(Training, IntegerProductsAgreeWithTheFloatPath) {
  for (const char* b : {"8", "4", "2"}) {
    SCOPED_TRACE(b);
    const SmallRun integer = small_run(false, bits(b, b));
    context().integer_products = false;
    const SmallRun oracle = small_run(false, bits(b, b));
    context().integer_products = true;
    EXPECT_NE(integer.losses, std::vector<float>(4, 0.f));
    // A value on the edge of two levels may round the other way; one such value moves the loss by a level.
    EXPECT_NEAR(integer.losses[0], oracle.losses[0], 1e-4f * oracle.losses[0]);
    for (size_t k = 1; k < 4; ++k) EXPECT_NEAR(integer.losses[k], oracle.losses[k], 2e-2f * oracle.losses[k]);
  }
}

TEST(Training, EveryMethodGivesFiniteAndRepeatableLosses) {
  for (const char* method : {"vvtq", "lsq", "lsq+", "minmax"}) {
    SCOPED_TRACE(method);
    Options o = bits("4", "4");
    o.set("quantizer", method, OptionOrigin::command_line);
    const SmallRun r = small_run(false, o, 1e-4);  // plain LSQ keeps no floor under its scales
    for (float l : r.losses) EXPECT_TRUE(std::isfinite(l));
    const SmallRun again = small_run(false, o, 1e-4);
    EXPECT_EQ(r.losses, again.losses);
  }
}

}  // namespace
}  // namespace lowbit::test
