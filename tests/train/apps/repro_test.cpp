// Recipes and sensitivity as users start them.

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "tests/data/fixtures.h"
#include "tests/train/apps/process.h"
#include "train/checkpoint/state.h"

namespace lowbit::test {
namespace {

namespace fs = std::filesystem;

void write_image(const std::string& path, unsigned char shade) {
  fs::create_directories(fs::path(path).parent_path());
  write_file(path, flat_bmp(8, 8, shade));
}

TEST(Repro, ListsAndRefuses) {
  const Outcome list = lowbit_run({"repro", "--list"});
  EXPECT_EQ(list.code, 0);
  EXPECT_NE(list.out.find("ofq-swin-t-w2a2-cga"), std::string::npos);
  EXPECT_NE(list.out.find("78.52"), std::string::npos);
  EXPECT_EQ(lowbit_run({"repro"}).code, 2);
  EXPECT_NE(lowbit_run({"repro", "nothing"}).complaint().find("--list"), std::string::npos);
  EXPECT_NE(lowbit_run({"repro", "ofq-deit-t-w2a2", "--data", "x"}).complaint().find("b40b3cf7.pth"),
            std::string::npos);
  EXPECT_NE(lowbit_run({"repro", "vvtq-deit-t-w2a2", "--data", "x"}).complaint().find("needs --soft-labels"),
            std::string::npos);
}

struct ReproSlow : testing::Test {
  TempDir dir;
  std::string data = dir / "data", runs = dir / "runs";
  void SetUp() override {
    for (const char* split : {"train", "val"})
      for (int c = 0; c < 2; ++c)
        for (int i = 0; i < 4; ++i)
          write_image(data + "/" + split + "/class" + std::to_string(c) + "/" + std::to_string(i) + ".bmp",
                      (unsigned char)(40 * i + 90 * c));
  }
  Outcome smoke(const std::string& recipe, const Words& more = {}) const {
    return lowbit_run(Words{"repro", recipe, "--smoke", "--threads", "1", "--data", data, "--output", runs} +
                      more);
  }
};

/// The whole chain of a recipe at its real size: a float start, OFQ with its teacher, annealing.
TEST_F(ReproSlow, SmokeOfAChainOfRecipes) {
  const Outcome r = smoke("ofq-deit-t-w2a2-cga");
  EXPECT_EQ(r.code, 0) << r.err;
  EXPECT_NE(r.out.find("ofq-deit-t-w2a2-cga: ran 2 steps; published 64.33, no verdict"), std::string::npos)
      << r.out;
  for (const char* run : {"/smoke-ofq-deit-t-w2a2", "/smoke-ofq-deit-t-w2a2-cga"})
    EXPECT_TRUE(fs::exists(runs + run + "/last.safetensors")) << run;
  const auto args =
      nlohmann::json::parse(read_file(runs + "/smoke-ofq-deit-t-w2a2-cga/args.json"))["options"];
  EXPECT_EQ(args["weights"]["value"], runs + "/smoke-ofq-deit-t-w2a2/last.safetensors");
  EXPECT_EQ(args["moments"]["value"], runs + "/smoke-ofq-deit-t-w2a2");
  EXPECT_EQ(args["cga-range"]["value"], "0.005");
  EXPECT_EQ(args["batch-size"]["value"], "2");
}

TEST(Moments, ComeFromAnotherRun) {
  TempDir dir;
  const Words common =
      Words{"train", "--output", dir.path(), "--threads", "1"} + tiny_model() + tiny_data(16, 8);
  ASSERT_EQ(lowbit_run(common + Words{"--run", "a", "--max-steps", "3"}).code, 0);
  const Words next = common + Words{"--weights", dir / "a/last.safetensors", "--max-steps", "1"};
  ASSERT_EQ(lowbit_run(next + Words{"--run", "fresh"}).code, 0);
  ASSERT_EQ(lowbit_run(next + Words{"--run", "b", "--moments", dir / "a"}).code, 0);
  const auto steps = [&](const char* run) {
    const auto all = load_checkpoint(dir / (std::string(run) + "/last.state")).tensors;
    const auto values = all.at("optim/steps").to_vector<int64_t>();
    return *std::max_element(values.begin(), values.end());
  };
  EXPECT_EQ(steps("a"), 3);
  EXPECT_EQ(steps("fresh"), 1);
  EXPECT_EQ(steps("b"), 4);
  const Outcome none = lowbit_run(next + Words{"--run", "c", "--moments", dir / "nowhere"});
  EXPECT_EQ(none.code, 3);
  EXPECT_NE(none.complaint().find("is no run folder"), std::string::npos);
  const Outcome other = lowbit_run(next + Words{"--run", "d", "--moments", dir / "a", "--opt", "sgd"});
  EXPECT_NE(other.complaint().find("was written with --opt adamw"), std::string::npos);
}

/// VVTQ from nothing: float training, its soft labels, quantized training on them.
TEST_F(ReproSlow, SmokeWithSoftLabels) {
  ASSERT_EQ(smoke("vvtq-deit-t-float").code, 0);
  const std::string weights = runs + "/smoke-vvtq-deit-t-float/last.safetensors", labels = dir / "labels";
  const Outcome gen = lowbit_run({"labels", "gen", labels, "--threads", "1", "--data", data, "--weights",
                                  weights, "--label-crops", "4", "--label-type", "smoothing"});
  ASSERT_EQ(gen.code, 0) << gen.err;
  const Outcome r = smoke("vvtq-deit-t-w2a2", {"--soft-labels", labels});
  EXPECT_EQ(r.code, 0) << r.err;
  EXPECT_NE(r.out.find("vvtq-deit-t-w2a2: ran 2 steps; published 59.73"), std::string::npos) << r.out;
  EXPECT_NE(r.err.find("starts from vvtq-deit-t-float"), std::string::npos);
}

TEST(Sensitivity, RanksThePartsOfAModel) {
  TempDir dir;
  const Words model = tiny_model() + tiny_data(24, 16);
  ASSERT_EQ(lowbit_run(Words{"train", "--output", dir / "runs", "--run", "r", "--epochs", "1"} + model +
                       four_bits())
                .code,
            0);
  const std::string weights = dir / "runs/r/last.safetensors";
  const Words data = {"--synthetic", "--limit-val", "16", "--weights", weights, "--threads", "1"};
  for (const Words& mode : {Words{"--spare"}, Words{}}) {
    const Outcome r = lowbit_run(Words{"sensitivity", "--json"} + data + mode);
    ASSERT_EQ(r.code, 0) << r.err;
    const auto j = nlohmann::json::parse(r.out);
    ASSERT_EQ(j["rows"].size(), 4u);  // patch_embed, blocks.0.attn, blocks.0.mlp, head
    const double before = j["rows"][0]["effect"], after = j["rows"][3]["effect"];
    EXPECT_GE(before, after);
    for (const auto& row : j["rows"])
      EXPECT_NE(row["loss"], mode.empty() ? j["none"]["loss"] : j["all"]["loss"]);
    EXPECT_GT(j["spreads"].size(), 8u);
    for (const auto& s : j["spreads"]) EXPECT_GE(s["reach"], 1.0) << s;
  }
  EXPECT_NE(read_file(dir / "runs/r/report.html").find("Sensitivity"), std::string::npos);
  // Everything quantized is what eval measures.
  const auto eval = nlohmann::json::parse(lowbit_run(Words{"eval", "--json"} + data).out);
  const auto saved = nlohmann::json::parse(read_file(dir / "runs/r/sensitivity.json"));
  EXPECT_NEAR(eval["loss"], double(saved["all"]["loss"]), 1e-6);
  EXPECT_NE(
      lowbit_run(Words{"sensitivity", "--synthetic"} + tiny_model()).complaint().find("nothing is quantized"),
      std::string::npos);
}

}  // namespace
}  // namespace lowbit::test
