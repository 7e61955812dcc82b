// RandAugment's operations and policies, Mixup and CutMix against timm 0.5.4, and properties of the drawing.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "data/core/loader.h"
#include "data/image/batch_augment.h"
#include "data/image/rand_augment.h"
#include "tensor/core/error.h"
#include "tests/data/image_support.h"
#include "tests/support/golden.h"

namespace lowbit {
namespace {

using namespace test;

void check_policies(const nlohmann::json& policies) {
  for (const auto& [text, expected] : policies.items()) {
    SCOPED_TRACE(text);
    const RandAugmentPolicy p = RandAugmentPolicy::parse(text);
    EXPECT_EQ(p.ops, expected.at("ops").get<std::vector<std::string>>());
    EXPECT_EQ(p.layers, expected.at("num_layers").get<int>());
    EXPECT_EQ(p.probability, expected.at("prob").get<double>());
    EXPECT_EQ(p.magnitude, expected.at("magnitude").get<double>());
    const double deviation = expected.at("magnitude_std");  // 1e308: the file's Infinity
    EXPECT_EQ(p.magnitude_std, deviation == 1e308 ? std::numeric_limits<double>::infinity() : deviation);
    const nlohmann::json& most = expected.at("magnitude_max");
    EXPECT_EQ(p.magnitude_max, most.is_null() ? 10 : most.get<double>());
  }
}

TEST(RandAugment, GoldenOperations) {
  LOWBIT_GOLDEN_OR_SKIP(path, "ofq/randaugment.safetensors");
  const GoldenFile g(path);
  Image scratch;
  int checked = 0;
  for (const auto& [name, c] : g.cases()) {
    SCOPED_TRACE(name);
    if (name == "policies") {
      check_policies(c);
      continue;
    }
    const std::string op = c.at("op");
    const double argument = augment_argument(op, c.value("level", 0.0), c.value("sign", 1) < 0);
    if (c.contains("arg") && !c.at("arg").empty()) {
      EXPECT_NEAR(argument, c.at("arg")[0].get<double>(), 1e-12);
    }
    const bool bicubic = c.contains("resample") && c.at("resample") == "bicubic";
    const auto fill = c.value("fill", std::array<uint8_t, 3>{});
    Image image = image_from(g.tensor(c.value("input", "image/in/x")));
    apply_augment(op, argument, bicubic ? Filter::bicubic : Filter::bilinear, fill, image, scratch);
    EXPECT_TRUE(equal_bits(as_tensor(image), g.tensor(name + "/out/y")));
    ++checked;
  }
  EXPECT_GT(checked, 0);
}

TEST(RandAugment, PolicyTextsAreChecked) {
  for (const char* text : {"", "augmix", "rand-", "rand-m", "rand-q3", "rand-mx", "rand-n0", "rand-p2",
                           "rand-m9-", "rand-w1", "rand-m1e999"})
    EXPECT_THROW(RandAugmentPolicy::parse(text), Error) << text;
  EXPECT_EQ(RandAugmentPolicy::parse("rand").magnitude, 10);
  const RandAugmentPolicy weighted = RandAugmentPolicy::parse("rand-m9-w0-n3");
  EXPECT_EQ(weighted.weights.size(), weighted.ops.size());
}

TEST(RandAugment, IsAFunctionOfTheKey) {
  const RandAugmentPolicy policy = RandAugmentPolicy::parse("rand-m9-mstd0.5-inc1");
  int changed = 0, different = 0;
  Image scratch;
  Tensor before;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const auto run = [&] {
      Image image = random_image(40, 40, 3);
      PhiloxDraws draws({seed, 1, 0, nullptr});
      rand_augment(policy, {124, 116, 104}, draws, image, scratch);
      return as_tensor(image);
    };
    const Tensor y = run();
    EXPECT_TRUE(equal_bits(y, run())) << seed;
    changed += !equal_bits(y, as_tensor(random_image(40, 40, 3)));
    different += before.defined() && !equal_bits(y, before);
    before = y;
  }
  EXPECT_GT(changed, 10);  // each of the two operations is left out half the time
  EXPECT_GT(different, 10);
}

TEST(ColorJitter, FactorOneIsTheIdentityAndZeroTheDegenerateImage) {
  Image image = random_image(9, 7, 1), scratch;
  const Tensor x = as_tensor(image);
  PhiloxDraws draws({3, 0, 0, nullptr});
  color_jitter(0, draws, image, scratch);
  EXPECT_TRUE(equal_bits(as_tensor(image), x));
  enhance(image, Enhancement::brightness, 0, scratch);
  for (size_t i = 0; i < image.bytes(); ++i) ASSERT_EQ(image.data()[i], 0);
}

MixupOptions mixup_options(const nlohmann::json& c) {
  MixupOptions o;
  o.mixup = c.at("mixup_alpha"), o.cutmix = c.at("cutmix_alpha");
  o.probability = c.at("prob"), o.switch_probability = c.at("switch_prob");
  if (c.contains("cutmix_minmax")) o.minmax = c.at("cutmix_minmax").get<std::array<double, 2>>();
  const std::string mode = c.at("mode");
  o.mode = mode == "batch"  ? MixupOptions::Mode::batch
           : mode == "pair" ? MixupOptions::Mode::pair
           : mode == "elem" ? MixupOptions::Mode::elem
                            : MixupOptions::Mode::half;
  return o;
}

TEST(Mixup, GoldenBatches) {
  LOWBIT_GOLDEN_OR_SKIP(path, "ofq/mixup.safetensors");
  const GoldenFile g(path);
  const Tensor labels = g.tensor("batch/in/y");
  for (const auto& [name, c] : g.cases()) {
    SCOPED_TRACE(name);
    ForcedDraws draws(c.at("draws"), true);
    if (name.starts_with("bbox")) {
      const Mix m = cutmix_box(c.at("lam"), c.at("shape")[0], c.at("shape")[1], draws);
      const auto box = c.at("box_y0_y1_x0_x1").get<std::vector<int>>();
      EXPECT_EQ(m.box, (Box{box[0], box[2], box[1] - box[0], box[3] - box[2]}));
      EXPECT_FLOAT_EQ(m.lam, c.at("lam_corrected").get<float>());
      continue;
    }
    const bool bytes = c.at("fast_collate");
    Tensor x = g.tensor(bytes ? "batch/in/x" : "float/in/x").clone();
    const MixupOptions o = mixup_options(c);
    const std::vector<Mix> plan = plan_mixup(o, x.size(0), int(x.size(2)), int(x.size(3)), draws);
    EXPECT_TRUE(draws.exhausted());
    apply_mixup(plan, x);
    Tensor targets = mixup_targets(plan, labels, c.at("num_classes"), c.at("label_smoothing"));
    const Tensor y = g.tensor(name + "/out/x");
    if (o.mode == MixupOptions::Mode::half)
      x = x.slice(0, 0, y.size(0)), targets = targets.slice(0, 0, y.size(0));
    if (bytes)
      EXPECT_TRUE(equal_bits(x.packed(), y));
    else
      expect_close(x, y, 1e-6, 1e-7, name);
    expect_close(targets, g.tensor(name + "/out/target").cast(DType::f32), 1e-6, 1e-7, name + " target");
  }
}

TEST(Mixup, BetaHasItsMoments) {
  for (const double a : {0.2, 0.8, 1.0, 4.0}) {
    PhiloxDraws draws({11, 0, 0, nullptr});
    constexpr int n = 40000;
    double sum = 0, squares = 0;
    for (int i = 0; i < n; ++i) {
      const double x = draws.beta(a);
      ASSERT_TRUE(x >= 0 && x <= 1);
      sum += x, squares += x * x;
    }
    const double mean = sum / n, variance = squares / n - mean * mean, expected = 1 / (4 * (2 * a + 1));
    EXPECT_NEAR(mean, 0.5, 4 * std::sqrt(expected / n)) << a;
    EXPECT_NEAR(variance, expected, 0.03 * expected) << a;
  }
}

TEST(BatchAugment, IsAFunctionOfEpochAndBatchAndKeepsPlainImages) {
  const int64_t n = 6, size = 24;
  Tensor pixels = Tensor::empty({n, 3, size, size}, DType::u8);
  for (int64_t i = 0; i < pixels.numel(); ++i)
    pixels.data<uint8_t>()[i] = uint8_t(philox_u32({5, 0, 0, nullptr}, uint64_t(i)));
  const Tensor labels = Tensor::from(std::vector<int64_t>{0, 1, 2, 3, 4, 0}, {n});
  BatchAugmentOptions o;
  o.classes = 5, o.smoothing = 0.1, o.seed = 3;
  o.mixup.mixup = 0.8, o.mixup.cutmix = 1, o.mixup_off_epoch = 4;
  o.erasing.probability = 0.25;
  const BatchAugment augment(o);
  const auto run = [&](int64_t epoch, int64_t batch) {
    return augment(pixels.clone(), labels, epoch, batch);
  };
  const auto a = run(1, 2), again = run(1, 2), other = run(1, 3), late = run(4, 2);
  EXPECT_TRUE(equal_bits(a.images, again.images));
  EXPECT_TRUE(equal_bits(a.targets, again.targets));
  EXPECT_FALSE(equal_bits(a.images, other.images));
  for (int64_t i = 0; i < n; ++i) {  // every row is a distribution
    double sum = 0;
    for (int64_t k = 0; k < 5; ++k) sum += a.targets.data_const<float>()[i * 5 + k];
    EXPECT_NEAR(sum, 1, 1e-6);
  }
  EXPECT_FALSE(late.targets.defined());
  o.mixup = {}, o.erasing.probability = 0;
  const auto plain = BatchAugment(o)(pixels.clone(), labels, 0, 0);
  Tensor expected = Tensor::empty(plain.images.shape());
  for (int64_t i = 0; i < n; ++i) {
    const Image image = image_from(pixels.select(0, i).permute({1, 2, 0}).packed());
    normalize_chw(image, o.normalization, expected.data<float>() + i * 3 * size * size);
  }
  EXPECT_TRUE(equal_bits(plain.images, expected));
}

TEST(RepeatedAugmentation, GoldenShards) {
  LOWBIT_GOLDEN_OR_SKIP(path, "ofq/samplers.safetensors");
  const GoldenFile g(path);
  for (const auto& [name, c] : g.cases()) {
    SCOPED_TRACE(name);
    const int64_t replicas = c.at("replicas"), rank = c.at("rank");
    const std::vector<int64_t> order = name.starts_with("ordered")
                                           ? SequentialSampler(c.at("dataset")).epoch(0)
                                           : g.tensor(name + "/in/permutation").to_vector<int64_t>();
    const std::vector<int64_t> ours = c.contains("repeats")
                                          ? repeated_shard(order, c.at("repeats"), replicas, rank)
                                          : shard(order, replicas, rank);
    EXPECT_EQ(ours, g.tensor(name + "/out/indices").to_vector<int64_t>());
  }
}

TEST(RepeatedAugmentation, ARepeatedImageIsAnotherCrop) {
  /// Writes its first draw.
  struct Draw final : Dataset {
    int64_t size() const override { return 300; }
    std::vector<Field> fields() const override {
      return {{"draw", Shape{}, DType::i64}, {"index", Shape{}, DType::i64}};
    }
    void read(int64_t index, const RngKey& key, std::span<const View> out) const override {
      *out[0].as<int64_t>() = PhiloxDraws(key).integer(0, INT32_MAX);
      *out[1].as<int64_t>() = index;
    }
  };
  LoaderOptions o;
  o.batch = 3, o.workers = 2;
  Loader loader(std::make_shared<Draw>(), std::make_shared<RepeatedSampler>(300, 3, 9), o);
  ASSERT_EQ(loader.batches(), 85);
  loader.start(0);
  while (const auto b = loader.next()) {
    const auto draw = b->fields[0].to_vector<int64_t>(), index = b->fields[1].to_vector<int64_t>();
    EXPECT_EQ(index[0], index[1]);
    EXPECT_EQ(index[1], index[2]);
    EXPECT_NE(draw[0], draw[1]);
    EXPECT_NE(draw[1], draw[2]);
  }
}

}  // namespace
}  // namespace lowbit
