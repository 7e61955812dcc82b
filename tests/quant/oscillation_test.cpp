// Oscillation tracking: against the published trackers, and the report over a model.

#include "quant/oscillation.h"

#include <gtest/gtest.h>

#include <cmath>

#include "nn/models/vit.h"
#include "quant/quantizer/lsq_quantizer.h"
#include "quant/scheme/scheme.h"
#include "tensor/core/thread_pool.h"
#include "tests/support/golden.h"
#include "tests/support/op_case.h"

namespace lowbit::test {
namespace {

OscillationSettings settings_of(const nlohmann::json& c) {
  OscillationSettings s;
  s.momentum = c.at("momentum"), s.freeze_threshold = c.value("freeze_threshold", 0.0);
  s.freeze_at_average = c.value("use_ema_x_int", true), s.totals = true;
  return s;
}

/// Levels k or k + ½ as codes.
Tensor codes_of(const Tensor& levels) {
  const std::vector<float> v = levels.to_vector<float>();
  Tensor codes = Tensor::empty(levels.shape(), DType::i8);
  for (size_t i = 0; i < v.size(); ++i) codes.data<int8_t>()[i] = int8_t(std::floor(v[i]));
  return codes.to(levels.device());
}

void expect_state(const GoldenFile& f, const OscillationTracker& t, const std::string& prefix,
                  const char* ours, const std::string& theirs, int64_t step = -1) {
  const std::string name = prefix + theirs;
  if (!f.has(name)) return;
  Tensor expected = f.tensor(name);
  if (step >= 0) expected = expected.select(0, step).packed();
  expect_close(t.state().at(ours).cast(DType::f32), expected.cast(DType::f32), f.rtol(), f.atol(), name);
}

TEST(OscillationGolden, Vvtq) {
  LOWBIT_GOLDEN_OR_SKIP(path, "vvtq/oscillation.safetensors");
  const GoldenFile f(path);
  for (const auto& [name, c] : f.cases()) {
    SCOPED_TRACE(name);
    LsqQuantizer quantizer(vvtq_weight(c.at("nbits")));
    placed(quantizer);
    TensorMap state = quantizer.state();
    state.at("alpha").copy_from(f.tensor(name + ".alpha"));
    state.at("init_state").fill(1);
    OscillationTracker tracker(settings_of(c));
    const Tensor weights = f.tensor(name + ".weights");
    const std::vector<float> logged = f.tensor(name + ".percentage").to_vector<float>();
    OscillationTracker::Counts counts;
    for (int64_t t = 0; t < weights.size(0); ++t) {
      SCOPED_TRACE(t);
      const Tensor w = weights.select(0, t).packed();
      if (t == 0)
        EXPECT_TRUE(std::isnan(logged[0])) << "nothing is tracked before the first call";
      else
        EXPECT_NEAR(double(counts.oscillating) / double(w.numel()), logged[size_t(t)], 1e-6);
      Tensor codes = quantizer.codes(w).cast(DType::i8);
      tracker.update(codes);
      counts = tracker.counts();
      expect_close(codes.cast(DType::f32), f.tensor(name + ".x_int").select(0, t).packed(), 0, 0, "codes");
      expect_state(f, tracker, name, "frequency", ".ema_oscillation", t);
      expect_state(f, tracker, name, "direction", ".prev_switch_dir", t);
      expect_state(f, tracker, name, "total", ".total_oscillation", t);
      if (tracker.state().count("frozen") == 0) continue;
      expect_state(f, tracker, name, "frozen", ".frozen", t);
      expect_state(f, tracker, name, "frozen_code", ".frozen_x_int", t);
      expect_state(f, tracker, name, "average", ".ema_x_int", t);
    }
  }
}

TEST(OscillationGolden, Ofq) {
  LOWBIT_GOLDEN_OR_SKIP(path, "ofq/oscillation.safetensors");
  const GoldenFile f(path);
  for (const auto& [name, c] : f.cases()) {
    SCOPED_TRACE(name);
    OscillationTracker tracker(settings_of(c));
    const bool integers = f.has(name + "/in/x_int");
    const Tensor levels = f.tensor(name + (integers ? "/in/x_int" : "/out/level"));
    const auto& expected = c.at("oscillated_per_step");
    for (int64_t t = 0; t < levels.size(0); ++t) {
      SCOPED_TRACE(t);
      Tensor codes = codes_of(levels.select(0, t).packed());
      tracker.update(codes);
      EXPECT_EQ(tracker.counts().oscillations, expected[size_t(t)].get<int64_t>());
      if (!integers) continue;
      expect_close(codes.cast(DType::f32), f.tensor(name + "/out/x_int").select(0, t).packed(), 0, 0,
                   "codes");
      expect_state(f, tracker, name, "frequency", "/out/ema_oscillation", t);
    }
    if (!integers) expect_state(f, tracker, name, "frequency", "/out/ema_oscillation");
    expect_state(f, tracker, name, "total", "/out/total_oscillation");
    if (f.has(name + "/out/prev_switch_dir"))
      expect_state(f, tracker, name, "direction", "/out/prev_switch_dir");
    for (const auto& [ours, theirs] : {std::pair("frozen", "/out/frozen"),
                                       {"frozen_code", "/out/frozen_x_int"},
                                       {"average", "/out/ema_x_int"}})
      if (f.has(name + theirs) && tracker.state().count(ours)) expect_state(f, tracker, name, ours, theirs);
  }
}

TEST(Oscillation, FlipsThatTurnBackCountWhateverTheThreads) {
  // Element i of many follows one of three paths: 0 1 0 1 …, 0 1 2 3 …, or rests.
  const int64_t n = 200'003;
  std::vector<Tensor> frequencies;
  for (int threads_now : {1, 2, 3}) {
    set_threads(threads_now);
    OscillationTracker tracker;
    for (int step = 0; step < 6; ++step) {
      Tensor codes = Tensor::empty({n}, DType::u8);
      uint8_t* c = codes.data<uint8_t>();
      for (int64_t i = 0; i < n; ++i)
        c[i] = i % 3 == 0 ? uint8_t(step % 2) : i % 3 == 1 ? uint8_t(step + 250) : 7;
      tracker.update(codes);
      const auto counts = tracker.counts();
      const int64_t jumping = (n + 2) / 3, climbing = (n + 1) / 3;
      EXPECT_EQ(counts.flips, step == 0 ? 0 : jumping + climbing);
      EXPECT_EQ(counts.oscillations, step < 2 ? 0 : jumping);
      EXPECT_EQ(counts.oscillating, step < 2 ? 0 : jumping);
    }
    frequencies.push_back(tracker.frequency());
  }
  set_threads(0);
  EXPECT_TRUE(equal_bits(frequencies[0], frequencies[1]) && equal_bits(frequencies[0], frequencies[2]));
  Tensor other = Tensor::zeros({3}, DType::u8);
  OscillationTracker tracker;
  tracker.update(other);
  Tensor wrong = Tensor::zeros({4}, DType::u8);
  EXPECT_THROW(tracker.update(wrong), Error);
}

/// State, counts and overwritten codes after steps of codes that jump at random.
TensorMap tracked(Device d, DType type, const OscillationSettings& settings) {
  const Shape shape = {3, 3001};
  OscillationTracker tracker(settings);
  TensorMap all;
  for (int step = 0; step < 8; ++step) {
    if (step == 5) tracker.set_freeze_threshold(settings.freeze_threshold / 2);
    Tensor host = Tensor::empty(shape, DType::i32);
    for (int64_t i = 0; i < host.numel(); ++i) {
      uint32_t h = (uint32_t(i) * 8 + uint32_t(step)) * 2654435761U;
      h = (h ^ h >> 15) * 2246822519U;
      host.data<int32_t>()[i] = int32_t((h ^ h >> 13) % 3);
    }
    Tensor codes = host.cast(type).to(d);
    tracker.update(codes);
    all[str_cat("codes", step)] = codes.to(Device{});
    const auto c = tracker.counts();
    const int64_t counts[] = {c.flips, c.oscillations, c.oscillating, c.all_flips};
    all[str_cat("counts", step)] = Tensor::from(std::span<const int64_t>(counts), {4});
    if (step == 3) tracker.forget_flips();
  }
  for (const auto& [name, t] : tracker.state()) all[name] = t.to(Device{});
  return all;
}

TEST(OscillationCuda, StepsEqualTheCpu) {
  if (!cuda_present()) GTEST_SKIP() << "no CUDA device";
  for (const DType type : {DType::i8, DType::u8})
    for (const double threshold : {0.0, 0.3})
      for (const bool totals : {false, true}) {
        const OscillationSettings s{
            .momentum = 0.1, .freeze_threshold = threshold, .freeze_at_average = totals, .totals = totals};
        const TensorMap cpu = tracked(Device{}, type, s), gpu = tracked(kGpu, type, s);
        ASSERT_EQ(cpu.size(), gpu.size());
        for (const auto& [name, t] : cpu) EXPECT_TRUE(equal_bits(t, gpu.at(name))) << name;
        if (threshold == 0) continue;
        int64_t frozen = 0;
        for (const uint8_t f : cpu.at("frozen").to_vector<uint8_t>()) frozen += f;
        EXPECT_GT(frozen, 100);
        EXPECT_LT(frozen, cpu.at("frozen").numel());
      }
}

TEST(Oscillation, DistancesToThresholds) {
  Coded c;
  c.codes = Tensor::from(std::vector<float>{-2, -2, -1, 0, 1, 1, 0, 1}, {2, 4}).cast(DType::i8);
  c.scale = Tensor::from(std::vector<float>{0.5f, 2.f}, {2});
  c.scale_axis = -2, c.lo = -2, c.hi = 1;
  const Tensor w =
      Tensor::from(std::vector<float>{-1.3f, -0.9f, -0.5f, 0.24f, 2.f, 1.5f, -1.f, 2.1f}, {2, 4});
  const std::vector<float> d = threshold_distances(w, c).to_vector<float>();
  const std::vector<float> expected = {NAN, 0.3f, 0.5f, 0.02f, 0.5f, 0.25f, 0.f, NAN};
  for (size_t i = 0; i < d.size(); ++i) {
    if (std::isnan(expected[i]))
      EXPECT_TRUE(std::isnan(d[i])) << i << " lies beyond the last level";
    else
      EXPECT_NEAR(d[i], expected[i], 1e-6) << i;
  }
}

struct WatchTest : testing::Test {
  VitConfig config;
  std::unique_ptr<VisionTransformer> model;
  void SetUp() override {
    config.image_size = 16, config.patch = 8, config.width = 24, config.depth = 1, config.heads = 3;
    config.classes = 5;
    model = make();
  }
  std::unique_ptr<VisionTransformer> make() const {
    auto m = std::make_unique<VisionTransformer>(config, 3);
    install(*m, load_scheme("vvtq", {.wbits = 2, .abits = 32}));
    m->eval();
    (*m)(Variable(fill("images", {2, 3, 16, 16}, 0, 1)));
    return m;
  }
};

TEST_F(WatchTest, SeesTheWeightsThatMove) {
  WeightWatch watch(*model);
  watch.step(), watch.step();
  for (const auto& l : watch.report()) EXPECT_EQ(l.flip_rate, 0) << l.name;
  Tensor w = model->state().at("blocks.0.mlp.fc1.weight");
  for (int i = 0; i < 3; ++i) {  // every weight changes its sign three times
    for (int64_t j = 0; j < w.numel(); ++j) w.data<float>()[j] = -w.data<float>()[j];
    watch.step();
  }
  EXPECT_GT(watch.flip_rate(), 0.05);
  const auto layers = watch.report();
  EXPECT_EQ(layers.size(), 6u) << "patch embedding, four products of the block, head";
  for (const auto& l : layers) {
    EXPECT_EQ(l.flip_rate > 0.5, l.name == "blocks.0.mlp.fc1") << l.name;
    EXPECT_EQ(l.share > 0.5, l.name == "blocks.0.mlp.fc1") << l.name;
  }
  const auto total = WeightWatch::total(layers);
  EXPECT_GT(total.share, 0.05);
  EXPECT_LT(total.share, 0.9);
  for (const auto& p : watch.placements()) {
    const auto expected = clipped_weights(*model);
    for (const auto& [slot, share] : expected) {
      if (slot == p.name + ".weight") {
        EXPECT_NEAR(p.clipped, share, 2e-3) << slot;
      }
    }
    EXPECT_GE(p.dead_zone, 0);
    EXPECT_LE(p.dead_zone, 1);
  }
}

TEST_F(WatchTest, StateContinues) {
  WeightWatch first(*model);
  Tensor w = model->state().at("head.weight");
  const auto move = [&] {
    for (int64_t j = 0; j < w.numel(); ++j) w.data<float>()[j] = -w.data<float>()[j];
  };
  first.step(), move(), first.step();
  WeightWatch second(*model);
  second.load(first.state());
  for (WeightWatch* watch : {&first, &second}) move(), watch->step(), move();
  EXPECT_EQ(first.flip_rate(), second.flip_rate());
  const TensorMap a = first.state(), b = second.state();
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, t] : a) EXPECT_TRUE(equal_bits(t, b.at(name))) << name;
  const auto x = first.report(), y = second.report();
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_EQ(x[i].flip_rate, y[i].flip_rate);
    EXPECT_EQ(x[i].share, y[i].share);
  }
  config.depth = 2;
  auto other = make();
  EXPECT_THROW(WeightWatch(*other).load(a), Error);
}

}  // namespace
}  // namespace lowbit::test
