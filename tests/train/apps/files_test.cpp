// What a run leaves behind can be used without knowing how it was made.

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "tensor/io/safetensors.h"
#include "tests/train/apps/process.h"

namespace lowbit::test {
namespace {

struct FilesTest : testing::Test {
  static TempDir* dir;
  static std::string run;
  static nlohmann::json result;

  static void SetUpTestSuite() {
    dir = new TempDir;
    run = *dir / "run";
    const Outcome r = lowbit_run(Words{"train", "--output", dir->path(), "--run", "run", "--epochs", "3",
                                       "--warmup-epochs", "0", "--lr", "3e-3", "--num-classes", "5"} +
                                 tiny_model() + tiny_data(60, 40) + four_bits());
    ASSERT_EQ(r.code, 0) << r.err;
    result = nlohmann::json::parse(r.out);
  }
  static void TearDownTestSuite() { delete dir; }

  static nlohmann::json eval(const std::string& file, const Words& more = {}) {
    const Outcome r = lowbit_run(
        Words{"eval", "--weights", file, "--synthetic", "--limit-val", "40", "--threads", "1", "--json"} +
        more);
    EXPECT_EQ(r.code, 0) << r.err;
    return nlohmann::json::parse(r.out);
  }
};
TempDir* FilesTest::dir = nullptr;
std::string FilesTest::run;
nlohmann::json FilesTest::result;

TEST_F(FilesTest, SavedWeightsSayWhatTheyNeed) {
  const auto best = eval(run + "/best.safetensors"),
             last = eval(run + "/last.safetensors", {"--batch-size", "7"});
  EXPECT_EQ(best.at("top1"), result.at("best_top1"));
  EXPECT_EQ(last.at("top1"), result.at("top1"));
  EXPECT_EQ(last.at("images"), 40);
  EXPECT_GT(double(result.at("best_top1")), 25.0) << "five classes: it has learned something";
  // Most of the weights have 4 bits.
  const auto in_float =
      eval(run + "/best.safetensors", {"--wbits", "32", "--abits", "32", "--allow-partial"});
  EXPECT_LT(double(best.at("weight_bits")), 0.5 * double(in_float.at("weight_bits")));
  EXPECT_LT(double(best.at("bops")), 0.2 * double(in_float.at("bops")));
}

TEST_F(FilesTest, EvalOnlyOfTrainGivesTheSameResult) {
  const Outcome r = lowbit_run({"train", "--eval-only", "--weights", run + "/best.safetensors", "--synthetic",
                                "--limit-val", "40", "--output", *dir / "unused"});
  EXPECT_EQ(r.code, 0) << r.err;
  EXPECT_NE(r.out.find(" * Acc@1 "), std::string::npos) << r.out;
  EXPECT_FALSE(std::filesystem::exists(*dir / "unused"));
}

TEST_F(FilesTest, WeightsStartAnotherTraining) {
  const Outcome r = lowbit_run({"train", "--output", *dir / "next", "--run", "n", "--weights",
                                run + "/best.safetensors", "--synthetic", "--limit-train", "8", "--limit-val",
                                "4", "--batch-size", "4", "--max-steps", "1", "--num-classes", "3"});
  EXPECT_EQ(r.code, 0) << r.err;
  EXPECT_NE(r.err.find("new classifier: head.weight [5, 24]"), std::string::npos) << r.err;
  const auto args = nlohmann::json::parse(read_file(*dir / "next/n/args.json"));
  EXPECT_EQ(args.at("options").at("wbits").at("value"), "4");
  EXPECT_EQ(args.at("options").at("wbits").at("origin"), "weight file");
  EXPECT_EQ(args.at("options").at("max-steps").at("origin"), "command line");
}

TEST_F(FilesTest, TheTeacherIsWhatItsFileSays) {
  const Words student =
      Words{"train",       "--output", *dir / "student", "--synthetic", "--limit-train", "8",
            "--limit-val", "4",        "--max-steps",    "1",           "--num-classes", "5"} +
      tiny_model();
  const std::string teacher = run + "/best.safetensors";
  const Outcome r = lowbit_run(student + Words{"--run", "s", "--teacher-weights", teacher});
  EXPECT_EQ(r.code, 0) << r.err;
  const size_t line = r.err.find("teacher: tinyvit_patch8_64");
  ASSERT_NE(line, std::string::npos) << r.err;
  EXPECT_NE(r.err.find("of quantizers", line), std::string::npos) << "it is quantized, the student is not";
  EXPECT_EQ(r.err.find("of quantizers"), r.err.find("of quantizers", line));
  // Another size, number of classes or normalisation cannot teach.
  EXPECT_EQ(
      lowbit_run(student + Words{"--teacher-weights", teacher, "--teacher", "deit_tiny_patch16_224"}).code,
      3);
  const Outcome classes = lowbit_run(student + Words{"--teacher-weights", teacher, "--num-classes", "7"});
  EXPECT_EQ(classes.code, 2) << classes.err;
  EXPECT_NE(classes.complaint().find("5 classes"), std::string::npos) << classes.err;
  const Outcome mean = lowbit_run(student + Words{"--teacher-weights", teacher, "--mean", "0,0,0"});
  EXPECT_EQ(mean.code, 2) << mean.err;
  EXPECT_NE(mean.complaint().find("--mean"), std::string::npos) << mean.err;
  TensorFile f = load_safetensors(teacher);
  save_safetensors(*dir / "nameless.safetensors", f.tensors, {});
  const Outcome nameless = lowbit_run(student + Words{"--teacher-weights", *dir / "nameless.safetensors"});
  EXPECT_EQ(nameless.code, 2) << nameless.err;
  EXPECT_NE(nameless.complaint().find("--teacher NAME"), std::string::npos) << nameless.err;
}

TEST_F(FilesTest, InspectListsTensorsAndSettings) {
  const Outcome r = lowbit_run({"inspect", run});
  EXPECT_EQ(r.code, 0) << r.err;
  for (const char* text : {"blocks.0.attn.qkv.weight", "lowbit.wbits", "quant_", "pos_embed"})
    EXPECT_NE(r.out.find(text), std::string::npos) << text << "\n" << r.out;
  const Outcome some = lowbit_run({"inspect", run + "/last.safetensors", "--filter", "pos_embed", "-v"});
  EXPECT_EQ(std::count(some.out.begin(), some.out.end(), '\n'), 1) << some.out;
  EXPECT_GT(some.out.size(), 40u) << "with the range of the values";
}

TEST_F(FilesTest, DiffSeesWhatDiffers) {
  EXPECT_EQ(lowbit_run({"diff", run, run + "/last.safetensors"}).code, 0);
  const Outcome r = lowbit_run({"diff", run + "/last.safetensors", run + "/previous.safetensors"});
  EXPECT_EQ(r.code, 1);
  EXPECT_EQ(r.err, "");
  EXPECT_NE(r.out.find("blocks.0.attn.qkv.weight"), std::string::npos) << r.out;
}

TEST_F(FilesTest, ConvertRoundTrip) {
  const std::string best = run + "/best.safetensors", torch = *dir / "best.pth",
                    back = *dir / "back.safetensors";
  EXPECT_EQ(lowbit_run({"convert", best, torch}).code, 0);
  EXPECT_EQ(lowbit_run({"convert", torch, back}).code, 0);
  EXPECT_EQ(lowbit_run({"diff", best, torch}).code, 0);
  EXPECT_EQ(lowbit_run({"diff", best, back}).code, 0);
  const std::string copy = *dir / "copy.safetensors", half = *dir / "half.safetensors";
  EXPECT_EQ(lowbit_run({"convert", best, copy}).code, 0);
  EXPECT_EQ(eval(copy).at("top1"), result.at("best_top1")) << "the settings are copied too";
  EXPECT_EQ(lowbit_run({"convert", best, half, "--dtype", "f16"}).code, 0);
  EXPECT_EQ(lowbit_run({"diff", best, half}).code, 1);
  EXPECT_LT(std::filesystem::file_size(half), std::filesystem::file_size(best) * 3 / 4);
  const Outcome same = lowbit_run({"convert", best, *dir / "best.jpg"});
  EXPECT_EQ(same.code, 2);
  EXPECT_FALSE(std::filesystem::exists(*dir / "best.jpg"));
}

TEST_F(FilesTest, RunFolderIsComplete) {
  for (const char* file : {"args.json", "manifest.json", "log.txt", "metrics.jsonl", "summary.csv",
                           "last.safetensors", "last.state", "best.safetensors", "checkpoint-2.safetensors"})
    EXPECT_TRUE(std::filesystem::exists(run + "/" + file)) << file;
  const auto args = nlohmann::json::parse(read_file(run + "/args.json"));
  EXPECT_EQ(args.at("options").at("wbits").at("origin"), "command line");
  EXPECT_EQ(args.at("options").at("opt").at("origin"), "default");
  const std::string log = read_file(run + "/log.txt");
  for (const char* text : {"model: ", "data: ", "blocks.", "Train: ", " * Acc@1 "})
    EXPECT_NE(log.find(text), std::string::npos) << text;
  bool events = false;
  for (const auto& e : std::filesystem::directory_iterator(run))
    events = events || e.path().filename().string().find("tfevents") != std::string::npos;
  EXPECT_TRUE(events);
}

TEST_F(FilesTest, DryRunAndPrintedConfig) {
  const Words words = Words{"train", "--output", *dir / "dry"} + tiny_model() + tiny_data() + four_bits();
  const Outcome r = lowbit_run(words + Words{"--dry-run", "--report-memory"});
  EXPECT_EQ(r.code, 0) << r.err;
  for (const char* text : {"model ", "bit map", "memory ", "time ", "multiply-adds", "bit operations"})
    EXPECT_NE(r.out.find(text), std::string::npos) << text << "\n" << r.out;
  EXPECT_FALSE(std::filesystem::exists(*dir / "dry"));
  const Outcome config = lowbit_run(words + Words{"--print-config"});
  EXPECT_EQ(config.code, 0);
  write_file(*dir / "run.ini", config.out);
  const Outcome again = lowbit_run({"train", "--config", *dir / "run.ini", "--print-config"});
  EXPECT_EQ(again.out, config.out);
  EXPECT_NE(config.out.find("\nwbits = 4\n"), std::string::npos);
}

}  // namespace
}  // namespace lowbit::test
