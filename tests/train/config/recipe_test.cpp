#include "train/config/recipe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>

#include "nn/models/factory.h"
#include "tensor/core/error.h"

namespace lowbit {
namespace {

std::set<std::string> names() {
  std::set<std::string> n;
  for (const Recipe& r : recipes()) n.insert(r.name);
  return n;
}

TEST(Recipes, TheProgramHasEveryFileOfTheFolder) {
  std::set<std::string> files;
  for (const auto& f : std::filesystem::directory_iterator(LOWBIT_SOURCE_DIR "/recipes"))
    files.insert(f.path().stem());
  EXPECT_EQ(names(), files);
}

TEST(Recipes, EveryRowOfTheTablesIsThere) {
  const std::set<std::string> have = names();
  for (const char* bits : {"w4a4", "w3a3", "w2a2"})
    for (const std::string model : {"vvtq-deit-t-", "vvtq-sret-t-", "vvtq-swin-t-", "lsqplus-deit-t-",
                                    "ofq-deit-t-", "ofq-deit-s-", "ofq-swin-t-", "lsq-deit-s-"}) {
      EXPECT_TRUE(have.count(model + bits)) << model << bits;
      if (model.starts_with("ofq")) {
        EXPECT_TRUE(have.count(model + bits + "-cga")) << model << bits;
      }
    }
  EXPECT_EQ(find_recipe("ofq-deit-t-w2a2-cga").published(), 64.33);
  EXPECT_EQ(find_recipe("vvtq-swin-t-w4a4").published(), 82.42);
}

/// Options, facts and the model of each; bits as in the name.
TEST(Recipes, EveryRecipeIsSound) {
  const std::vector<std::string> models = model_names();
  for (const Recipe& r : recipes()) {
    SCOPED_TRACE(r.name);
    Options o(*find_verb("train"));
    ASSERT_NO_THROW(take_ini(o, r.text, r.name));
    EXPECT_NE(std::find(models.begin(), models.end(), o.text("model")), models.end()) << o.text("model");
    const size_t w = r.name.find("-w");
    const int bits = w == std::string::npos || !std::isdigit(r.name[w + 2]) ? 32 : r.name[w + 2] - '0';
    EXPECT_EQ(o.integer("wbits"), bits);
    EXPECT_EQ(o.integer("abits"), bits);
    EXPECT_FALSE(r.fact("row").empty());
    EXPECT_FALSE(r.fact("images").empty());
    for (const auto& [key, value] : r.facts)
      EXPECT_TRUE(std::set<std::string>(
                      {"row", "published", "unverified", "images", "start", "moments", "weights", "needs"})
                      .count(key))
          << key;
    EXPECT_TRUE(std::isnan(r.published()) || (r.published() > 50 && r.published() < 90));
    std::set<std::string> chain = {r.name};
    for (std::string start = r.fact("start"); !start.empty(); start = find_recipe(start).fact("start"))
      ASSERT_TRUE(chain.insert(start).second) << "a circle";
    if (!r.fact("needs").empty()) {
      EXPECT_TRUE(find_option(r.fact("needs"), kTrain));
    }
    const std::string file = LOWBIT_SOURCE_DIR "/recipes/" + r.name + ".ini";
    EXPECT_NO_THROW(parse_options(*find_verb("train"), {"--config", file}));
    EXPECT_EQ(find_recipe(file).text, r.text);
  }
}

TEST(Recipes, Verdict) {
  const Recipe r = find_recipe("vvtq-deit-t-w4a4");  // 74.71
  EXPECT_TRUE(judge(r, 74.71, 50000, 0).reproduced);
  EXPECT_TRUE(judge(r, 80, 50000, 0).reproduced);
  // The standard error of 74 % of 50,000 is 0.196.
  EXPECT_TRUE(judge(r, 74.0, 50000, 0.5).reproduced);
  EXPECT_FALSE(judge(r, 73.7, 50000, 0.5).reproduced);
  EXPECT_TRUE(judge(r, 73.7, 500, 0.5).reproduced) << "500 images cannot tell";
  EXPECT_NE(judge(r, 73.7, 50000, 0.5).text.find("published 74.71, -1.01 points: NOT reproduced"),
            std::string::npos);
  EXPECT_NE(judge(find_recipe("lsqplus-deit-t-w2a2"), 50, 500, 1).text.find("no verdict"), std::string::npos);
  EXPECT_NE(judge(find_recipe("ofq-deit-t-w2a2"), 50, 500, 1).text.find("no number is published"),
            std::string::npos);
}

TEST(Recipes, UnknownNames) {
  EXPECT_THROW(find_recipe("vvtq-deit-t-w5a5"), Error);
  EXPECT_THROW(find_recipe("no/such/file.ini"), Error);
  EXPECT_EQ(find_recipe(LOWBIT_SOURCE_DIR "/recipes/ofq-swin-t-w2a2.ini").text,
            find_recipe("ofq-swin-t-w2a2").text);
}

}  // namespace
}  // namespace lowbit
