// Warnings: what causes each, that it comes once, and what must not cause it.

#include "train/step/monitor.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "autograd/ops/reduce.h"
#include "nn/models/vit.h"
#include "quant/scheme/scheme.h"
#include "tests/support/golden.h"
#include "tests/support/temp_dir.h"

namespace lowbit::test {
namespace {

struct WarningsTest : testing::Test {
  TempDir dir;
  Log log{{LogLevel::error, dir / "log.txt", 0}};
  Warnings warnings{log};
  /// Warnings since the last call, without time and level.
  std::vector<std::string> given() {
    std::ifstream in(dir / "log.txt");
    std::vector<std::string> all;
    for (std::string line; std::getline(in, line);)
      if (const size_t at = line.find(" WARNING rank0 "); at != line.npos)
        all.push_back(line.substr(at + 15));
    std::vector<std::string> fresh(all.begin() + std::ptrdiff_t(seen_), all.end());
    seen_ = all.size();
    return fresh;
  }

 private:
  size_t seen_ = 0;
};
using Lines = std::vector<std::string>;

TEST_F(WarningsTest, Scales) {
  warnings.scales(1, {{"a", {0.1f, 0.2f}}, {"b", {0.1f}}});
  warnings.scales(2, {{"a", {0.14f, 0.11f}}, {"b", {0.149f}}});
  EXPECT_EQ(given(), Lines{}) << "moves of less than half";
  warnings.scales(3, {{"a", {0.14f, 0.05f}}, {"b", {0.3f}}});
  EXPECT_EQ(
      given(),
      Lines{"step 3: a: the scale moved from 0.11 to 0.05 in one step; lower --lr?; the same for 1 more: b"});
  warnings.scales(4, {{"a", {0.5f, 0.05f}}, {"b", {0.9f}}});
  EXPECT_EQ(given(), Lines{}) << "once";
  warnings.scales(5, {{"a", {0.5f, -0.05f}}, {"b", {0.9f}}});
  EXPECT_EQ(given(), Lines{"step 5: a: the scale is not positive (-0.05)"});
  warnings.scales(6, {{"a", {0.5f, NAN}}, {"b", {0.f}}});
  EXPECT_EQ(given(), Lines{"step 6: b: the scale is not positive (0)"});
}

TEST_F(WarningsTest, FewLinesOfAKind) {
  for (int i = 0; i < 9; ++i) warnings.scales(i, {{"layer" + std::to_string(i), {-1.f}}});
  const Lines lines = given();
  ASSERT_EQ(lines.size(), 5u);
  EXPECT_NE(lines.back().find("last warning of this kind"), std::string::npos);
  std::vector<std::pair<std::string, double>> many;
  for (int i = 0; i < 9; ++i) many.emplace_back("layer" + std::to_string(i), 0.1 * i);
  warnings.clipped(7, many);
  EXPECT_EQ(given(), Lines{"step 7: layer3: 30 % of the weights lie outside the levels; the same for 5 more: "
                           "layer4, layer5, layer6, …"});
}

TEST_F(WarningsTest, Gradients) {
  Variable used(Tensor::full({2, 2}, 1), true), idle(Tensor::full({2, 2}, 1), true),
      bias(Tensor::full({2}, 1), true);
  Parameter p{"used", used}, q{"idle", idle}, r{"bias", bias};
  ParameterArena arena({{"used.weight", &p}, {"idle.weight", &q}, {"idle.bias", &r}});
  for (int step = 1; step <= 5; ++step) {
    arena.zero_grad();
    mean(p.var).backward();
    if (step == 2) mean(q.var).backward();
    warnings.gradients(step, arena);
    EXPECT_EQ(given(), step == 5 ? Lines{"step 5: idle.weight: no gradient for 3 steps"} : Lines{}) << step;
  }
}

TEST_F(WarningsTest, Loader) {
  warnings.loader(10, 1, 0.5, 2);
  EXPECT_EQ(given(), Lines{});
  warnings.loader(20, 1, 0.62, 2), warnings.loader(30, 1, 0.7, 2);
  EXPECT_EQ(given(),
            Lines{"step 20: data: the loader is slower than the training: 62 % of the time is waiting for "
                  "images; raise --workers (now 2) or store smaller images"});
}

struct NonfiniteTest : testing::Test {
  VitConfig config;
  std::unique_ptr<VisionTransformer> model;
  Tensor images = fill("images", {2, 3, 16, 16}, 0, 1);
  void SetUp() override {
    config.image_size = 16, config.patch = 8, config.width = 24, config.depth = 2, config.heads = 3;
    config.classes = 5;
    model = std::make_unique<VisionTransformer>(config, 3);
  }
  std::string find() {
    return find_nonfinite(*model, images, [&] { (*model)(Variable(images)); });
  }
  void set(const std::string& parameter, float value) {
    Tensor t = model->state().at(parameter);
    t.data<float>()[0] = value;
  }
};

TEST_F(NonfiniteTest, NamesTheCause) {
  EXPECT_EQ(find(), "every operation's output is finite when repeated");
  Tensor weight = model->state().at("blocks.1.mlp.fc1.weight");
  weight.fill(3e38);  // finite, but its product is not
  const std::string cause = find();
  EXPECT_TRUE(cause.starts_with("linear: ")) << cause;
  EXPECT_TRUE(cause.ends_with("; after blocks.1.mlp.fc1.weight")) << cause;
  set("blocks.0.attn.qkv.weight", NAN);
  EXPECT_EQ(find(), "the parameter blocks.0.attn.qkv.weight is not finite");
  images.data<float>()[7] = INFINITY;
  EXPECT_EQ(find(), "the images are not finite");
}

TEST_F(NonfiniteTest, LeavesTheModelAsItWas) {
  install(*model, load_scheme("vvtq", {.wbits = 4, .abits = 4}));
  const Tensor before = (*model)(Variable(images)).data().clone();
  const size_t state = model->state().size();
  EXPECT_EQ(find(), "every operation's output is finite when repeated");
  EXPECT_EQ(model->state().size(), state);
  EXPECT_TRUE(equal_bits((*model)(Variable(images)).data(), before));
}

}  // namespace
}  // namespace lowbit::test
