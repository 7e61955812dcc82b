// The page of a run: made from its files alone, complete, readable by any browser, and never half a file.

#include "train/report/report.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <regex>

#include "tensor/core/error.h"
#include "tests/train/apps/process.h"
#include "train/metrics/run_log.h"
#include "train/report/svg.h"

namespace lowbit::test {
namespace {

namespace fs = std::filesystem;

int count(const std::string& text, const std::string& part) {
  int n = 0;
  for (size_t at = 0; (at = text.find(part, at)) != text.npos; at += part.size()) ++n;
  return n;
}

/// Every element that is opened is closed, in order; attributes hold no stray quotes.
void expect_well_formed(const std::string& page) {
  std::vector<std::string> open;
  const std::regex tag("<(/?)([a-zA-Z0-9]+)((?:\\s+[-a-zA-Z0-9]+(?:=\"[^\"<>]*\")?)*)\\s*(/?)>");
  std::string rest = std::regex_replace(page, std::regex("<!doctype html>|<style>[^<]*</style>"), "");
  size_t tags = 0;
  for (std::sregex_iterator it(rest.begin(), rest.end(), tag), end; it != end; ++it, ++tags) {
    const std::string name = (*it)[2];
    if ((*it)[4] == "/" || name == "meta") continue;
    if ((*it)[1] == "") {
      open.push_back(name);
    } else {
      ASSERT_FALSE(open.empty()) << name;
      EXPECT_EQ(open.back(), name);
      open.pop_back();
    }
  }
  EXPECT_TRUE(open.empty()) << open.back();
  EXPECT_EQ(size_t(count(rest, "<")), tags) << "a '<' that begins no element";
}

void expect_self_contained(const std::string& page) {
  for (const char* outside : {"<script", "http://", "https://", "src=", "@import", "url("})
    EXPECT_EQ(page.find(outside), std::string::npos) << outside;
  for (const char* broken : {"nan", "inf,", "inf\""}) EXPECT_EQ(count(page, broken), 0) << broken;
}

TEST(Svg, ChartsOfOddData) {
  EXPECT_EQ(svg::lines({"t", "x"}, {}), "");
  EXPECT_EQ(svg::lines({"t", "x"}, {{"a", {{1, NAN}, {2, INFINITY}}}}), "");
  EXPECT_EQ(svg::histogram({"t", "x"}, 0, 1, {{"a", {0, 0}}}), "");
  std::vector<std::pair<double, double>> many;
  for (int i = 0; i < 100'000; ++i) many.emplace_back(i, std::sin(i * 1e-3));
  const std::vector<std::string> all = {
      svg::lines({"one point", "x"}, {{"a", {{3, 5}}}}),
      svg::lines({"flat", "x"}, {{"a", {{1, 0}, {2, 0}}}}),
      svg::lines({"small & <large>", "x"}, {{"a", {{1, 1e-9}, {1e9, 1e-8}}}, {"b", {{1, 2e-9}, {5e8, NAN}}}}),
      svg::lines({"many", "x"}, {{"a", many}}),
      svg::bars({"t", ""}, {{"a", 1}, {"b", 0}}),
      svg::heat_map({"t", "x"}, {"layer", "other"}, {1, 2, 3}, {{1, 2, NAN}, {0, 0, 0}})};
  for (const std::string& s : all) {
    EXPECT_LT(s.size(), 20'000u);
    expect_well_formed(s), expect_self_contained(s);
  }
  EXPECT_NE(all[2].find("small &amp; &lt;large&gt;"), std::string::npos);
}

struct ReportTest : testing::Test {
  static TempDir* dir;
  static void SetUpTestSuite() {
    dir = new TempDir;
    for (const char* run : {"quantized", "float"})
      ASSERT_EQ(lowbit_run(Words{"train", "--output", dir->path(), "--run", run, "--epochs", "2",
                                 "--warmup-epochs", "0", "--log-every", "2"} +
                           tiny_model() + tiny_data() + (run[0] == 'q' ? four_bits() : Words{}))
                    .code,
                0);
  }
  static void TearDownTestSuite() { delete dir; }
};
TempDir* ReportTest::dir = nullptr;

TEST_F(ReportTest, SaysWhatTheRunDid) {
  const std::string page = read_file(*dir / "quantized/report.html");
  expect_well_formed(page), expect_self_contained(page);
  for (const char* part :
       {"Training", "Loss", "Accuracy", "Learning rate", "Oscillating share of each layer",
        "distance to the nearest threshold", "Share of each layer outside its levels",
        "Largest weight of each layer", "Scales", "Change of the weights' scales",
        "Change of the activations' scales", "blocks.0.attn.qkv", "Bit map", "weights 4 bit", "weights 8 bit",
        "Epochs", "--wbits", "command line", "best top-1"})
    EXPECT_NE(page.find(part), std::string::npos) << part;
  EXPECT_EQ(count(page, "<svg"), 13);
  EXPECT_EQ(page.find("http-equiv"), std::string::npos) << "it is over: nothing to reload";
  const std::string plain = read_file(*dir / "float/report.html");
  expect_well_formed(plain);
  EXPECT_EQ(count(plain, "<svg"), 4) << "no quantized weights, no charts of them";
}

TEST_F(ReportTest, IsMadeAgainFromTheFiles) {
  const std::string file = *dir / "quantized/report.html", page = read_file(file);
  fs::remove(file);
  const Outcome r = lowbit_run({"report", *dir / "quantized"});
  EXPECT_EQ(r.code, 0) << r.err;
  EXPECT_EQ(r.out, file + "\n");
  EXPECT_EQ(read_file(file), page);
  EXPECT_FALSE(fs::exists(file + ".tmp"));
  write_report(*dir / "quantized", true);
  EXPECT_NE(read_file(file).find("http-equiv=\"refresh\""), std::string::npos);
}

TEST_F(ReportTest, Comparison) {
  write_file(*dir / "before.json", R"({"top1": 12.5, "top5": 62.5, "img_per_s": 99.5, "weight_bits": 8e6})");
  const Outcome r = lowbit_run(
      {"report", "--file", *dir / "all.html", *dir / "float", *dir / "before.json", *dir / "quantized/"});
  EXPECT_EQ(r.code, 0) << r.err;
  for (const char* part : {"model ", "float ", "before ", "quantized ", "12.50", "99.5", "8.0"})
    EXPECT_NE(r.out.find(part), std::string::npos) << part << "\n" << r.out;
  const std::string page = read_file(*dir / "all.html");
  expect_well_formed(page), expect_self_contained(page);
  EXPECT_NE(page.find("href=\"quantized/report.html\""), std::string::npos);
  EXPECT_EQ(count(page, "<svg"), 3);
}

TEST_F(ReportTest, FilesOfAnInterruptedOrStrangeRun) {
  const std::string folder = *dir / "odd & <b>";
  fs::create_directories(folder);
  write_file(folder + "/metrics.jsonl",
             "{\"step\":1,\"split\":\"train\",\"loss\":\"nan\"}\nnot "
             "json\n{\"step\":2,\"split\":\"train\",\"loss\":1.5}\n{\"st");
  write_report(folder);
  const std::string page = read_file(folder + "/report.html");
  expect_well_formed(page), expect_self_contained(page);
  EXPECT_NE(page.find("odd &amp; &lt;b&gt;"), std::string::npos);
  const Outcome none = lowbit_run({"report", *dir / "nowhere"});
  EXPECT_EQ(none.code, 3);
  EXPECT_NE(none.complaint().find("nowhere"), std::string::npos) << none.err;
  EXPECT_EQ(lowbit_run({"report"}).code, 2);
}

}  // namespace
}  // namespace lowbit::test
