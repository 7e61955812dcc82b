// Soft labels that a model of ours writes: every form, the same bits however they were made, and training
// from them.

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "data/soft_label/label_store.h"
#include "tests/support/golden.h"
#include "tests/train/apps/process.h"

namespace lowbit::test {
namespace {

namespace fs = std::filesystem;

struct LabelsTest : testing::Test {
  static TempDir* dir;
  static std::string images, teacher;

  static void SetUpTestSuite() {
    dir = new TempDir;
    images = golden_path("vvtq/fkd/imagenet");
    if (images.empty()) return;
    teacher = *dir / "runs/teacher/last.safetensors";
    const Outcome r =
        lowbit_run(Words{"train", "--data", images, "--output", *dir / "runs", "--run", "teacher",
                         "--max-steps", "2", "--lr", "1e-2", "--warmup-epochs", "0", "--num-classes", "10"} +
                   tiny_model());
    ASSERT_EQ(r.code, 0) << r.err;
  }
  static void TearDownTestSuite() { delete dir; }
  void SetUp() override {
    if (images.empty()) GTEST_SKIP() << "golden file not found: vvtq/fkd/imagenet";
  }

  static Outcome generate(const std::string& out, const Words& more = {}) {
    return lowbit_run(Words{"labels", "gen", out, "--data", images, "--weights", teacher, "--label-crops",
                            "7", "--threads", "1", "--workers", "1"} +
                      more);
  }
};
TempDir* LabelsTest::dir = nullptr;
std::string LabelsTest::images, LabelsTest::teacher;

/// Relative path and content of every label file.
std::map<std::string, std::string> files_below(const std::string& folder) {
  std::map<std::string, std::string> all;
  for (const auto& e : fs::recursive_directory_iterator(folder))
    if (e.path().extension() == ".tar") all[fs::relative(e.path(), folder)] = read_file(e.path());
  return all;
}

TEST_F(LabelsTest, EveryTypeIsWrittenAndRead) {
  for (const std::string type :
       {"ori", "hard", "smoothing", "marginal_smoothing_k1", "marginal_smoothing_k2", "marginal_renorm_k2"})
    for (const bool half : {false, true}) {
      SCOPED_TRACE(type + (half ? " half" : ""));
      const std::string out = *dir / ("types_" + type + (half ? "_half" : ""));
      Words more{"--label-type", type};
      if (half) more.push_back("--fp16");
      const Outcome r = generate(out, more);
      ASSERT_EQ(r.code, 0) << r.err;
      EXPECT_EQ(lowbit_run({"labels", "verify", out}).code, 0);
      const LabelSummary s = verify_labels(out);
      EXPECT_EQ(s.images, 8);
      EXPECT_EQ(s.least_crops, 7);
      const std::string stored =
          type == "marginal_renorm_k2" ? "marginal_smoothing_k2" : type;  // they differ in reading only
      EXPECT_EQ(soft_label_name(s.type, s.ids_each), stored);
      // Packing the files and writing the pack at once give the same bytes.
      const std::string packed = out + ".packed", direct = out + ".direct";
      ASSERT_EQ(lowbit_run({"labels", "pack", out, packed}).code, 0);
      more.push_back("--pack");
      const Outcome d = generate(direct, more);
      ASSERT_EQ(d.code, 0) << d.err;
      EXPECT_EQ(read_file(packed), read_file(direct));
      EXPECT_FALSE(fs::exists(direct + ".partial") || fs::exists(direct + ".partial.index"));
    }
}

TEST_F(LabelsTest, SegmentsThreadsAndInterruptionsDoNotShow) {
  const std::string whole = *dir / "whole", other = *dir / "other";
  ASSERT_EQ(generate(whole).code, 0);
  const auto expected = files_below(whole);
  ASSERT_EQ(expected.size(), 8U);
  EXPECT_TRUE(expected.contains("imagenet/train/n00000001/a_1.tar"));
  ASSERT_EQ(generate(other, {"--segment", "3", "--threads", "3", "--workers", "0"}).code, 0);
  EXPECT_EQ(files_below(other), expected);
  // What is missing is made again, what is there stays.
  fs::remove(other + "/imagenet/train/n00000001/a_2.tar");
  fs::remove(other + "/imagenet/train/n00000002/b_4.tar");
  ASSERT_EQ(generate(other).code, 0);
  EXPECT_EQ(files_below(other), expected);
  // Other settings in the same folder are refused.
  const Outcome r = generate(other, {"--seed", "5"});
  EXPECT_EQ(r.code, 3);
  EXPECT_NE(r.complaint().find("was begun with other settings"), std::string::npos) << r.err;
}

TEST_F(LabelsTest, APackIsContinued) {
  const std::string whole = *dir / "whole.pack", cut = *dir / "cut.pack";
  ASSERT_EQ(generate(whole, {"--pack"}).code, 0);
  const std::string expected = read_file(whole);
  ASSERT_EQ(generate(cut, {"--pack"}).code, 0);
  // The state after 3 of 8 images and a half-written fourth: the beginning of the file and of its index.
  fs::remove(cut);
  Process p(Words{"labels", "gen", cut, "--data", images, "--weights", teacher, "--label-crops", "7",
                  "--threads", "1", "--workers", "1", "--pack", "--log-every", "1"});
  ASSERT_TRUE(p.wait_for("labelled 2 of 8"));
  p.kill(SIGKILL);
  p.wait();
  if (!fs::exists(cut)) {  // else it was faster than the signal
    ASSERT_TRUE(fs::exists(cut + ".partial"));
    EXPECT_GT(fs::file_size(cut + ".partial"), 16U);
    std::ofstream(cut + ".partial", std::ios::app) << "half a record";
    std::ofstream(cut + ".partial.index", std::ios::app) << "half";
    ASSERT_EQ(generate(cut, {"--pack"}).code, 0);
  }
  EXPECT_EQ(read_file(cut), expected);
}

TEST_F(LabelsTest, AStudentLearnsTheSameBitsFromFolderAndPack) {
  const std::string folder = *dir / "student", pack = *dir / "student.pack";
  ASSERT_EQ(generate(folder, {"--label-type", "smoothing"}).code, 0);
  ASSERT_EQ(generate(pack, {"--label-type", "smoothing", "--pack"}).code, 0);
  std::string bytes;
  for (const std::string& labels : {folder, pack}) {
    const std::string run = labels == folder ? "from_folder" : "from_pack";
    const Outcome r = lowbit_run(Words{"train", "--data", images, "--output", *dir / "runs", "--run", run,
                                       "--epochs", "2", "--crops", "2", "--soft-labels", labels,
                                       "--warmup-epochs", "0", "--num-classes", "10"} +
                                 tiny_model() + four_bits() + Words{"--batch-size", "2"});
    ASSERT_EQ(r.code, 0) << r.err;
    const std::string state = read_file(*dir / ("runs/" + run + "/last.state"));
    if (bytes.empty()) bytes = state;
    EXPECT_TRUE(state == bytes);
  }
}

TEST_F(LabelsTest, BoxesOfOtherLabelsAreTaken) {
  const std::string first = *dir / "first", second = *dir / "second";
  ASSERT_EQ(generate(first).code, 0);
  ASSERT_EQ(generate(second, {"--seed", "9", "--reference-labels", first}).code, 0);
  EXPECT_EQ(files_below(first), files_below(second));
}

TEST_F(LabelsTest, PublishedRemainderAndPrecision) {
  const std::string out = *dir / "published";
  ASSERT_EQ(generate(out, {"--compat", "reference", "--segment", "3", "--fp16"}).code, 0);
  EXPECT_EQ(verify_labels(out).most_crops, 6) << "the seventh crop is no whole segment";
  const std::string few = *dir / "published_few", full = *dir / "published_full";
  ASSERT_EQ(generate(few, {"--compat", "reference", "--segment", "50", "--fp16"}).code, 0);
  ASSERT_EQ(generate(full).code, 0);
  EXPECT_EQ(files_below(few), files_below(full)) << "one segment: half precision is not applied";
}

TEST_F(LabelsTest, BadInputIsRefused) {
  EXPECT_EQ(generate(*dir / "bad", {"--label-type", "best"}).code, 2);
  EXPECT_EQ(generate(*dir / "bad", {"--label-type", "marginal_smoothing_k11"}).code, 2);
  EXPECT_EQ(lowbit_run({"labels", "gen", *dir / "bad"}).code, 2);
  EXPECT_EQ(lowbit_run({"labels", "gen", *dir / "bad", "--data", images}).code, 2);
}

}  // namespace
}  // namespace lowbit::test
