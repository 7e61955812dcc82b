// Runs that are killed or told to stop at random moments and continued until they end: every bit of the
// result is that of the run that nobody disturbed.

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>
#include <set>

#include "tensor/engine/isa.h"
#include "tests/support/golden.h"
#include "tests/train/apps/runs.h"

namespace lowbit::test {
namespace {

constexpr int kEpochs = 3, kSteps = 30;

Words quantized() {
  return Words{"train", "--epochs", "3", "--warmup-epochs", "1", "--log-every", "1", "--no-tensorboard"} +
         tiny_model() + tiny_data(4 * kSteps + 3) + four_bits();
}
Words averaged() {
  return Words{"train", "--epochs",         "3",           "--warmup-epochs",   "1",   "--log-every",
               "1",     "--no-tensorboard", "--model-ema", "--model-ema-decay", "0.9", "--drop-path",
               "0.3",   "--drop",           "0.1",         "--accumulate",      "2",   "--clip-grad",
               "1",     "--sched-per-step"} +
         tiny_model() + tiny_data(8 * kSteps + 5);
}

/// With so many training and evaluation lines, and epochs.
void expect_equal_runs(const std::string& calm, const std::string& run,
                       int64_t lines = kEpochs * (kSteps + 1), size_t epochs = kEpochs) {
  const auto expected = events(calm);
  const auto written = std::count_if(expected.begin(), expected.end(),
                                     [](const auto& j) { return j.at("split") != "weights"; });
  EXPECT_EQ(written, lines);
  EXPECT_EQ(rows(calm).size(), epochs + 1);
  expect_equal_results(calm, run);
}

struct KillTest : testing::Test {
  TempDir dir;
  std::mt19937 random{20260301};
  int pick(int n) { return int(random() % unsigned(n)); }

  static Words in(const std::string& folder, const std::string& run) {
    return {"--output", folder, "--run", run};
  }
  /// Threads, loader threads and checkpoint interval change no result, so every start has its own.
  Words varied() {
    return {"--threads",          std::to_string(1 + pick(3)), "--workers", std::to_string(pick(4)),
            "--checkpoint-every", std::to_string(1 + pick(3))};
  }
  void calm_run(const Words& words) {
    const Outcome r = lowbit_run(words + in(dir.path(), "calm"));
    ASSERT_EQ(r.code, 0) << r.err;
  }
  /// Starts the run, lets it log a few steps, waits up to 25 ms and sends the signal.
  Outcome disturbed(const Words& words, int signal, int after_lines) {
    Process p(words);
    EXPECT_TRUE(p.started());
    const auto lines = [&] {
      size_t n = 0, at = 0;
      for (const std::string text = p.err_so_far(); (at = text.find("Train: ", at)) != text.npos; ++at) ++n;
      return n;
    };
    while (p.running() && lines() < size_t(after_lines))
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    std::this_thread::sleep_for(std::chrono::microseconds(pick(8000)));
    p.kill(signal);
    return p.wait();
  }
  void kill_and_compare(const Words& words, int wanted, int64_t lines = kEpochs * (kSteps + 1),
                        size_t epochs = kEpochs) {
    calm_run(words);
    std::set<std::string> resumed;
    for (int kills = 0, runs = 0; kills < wanted; ++runs) {
      const std::string name = "run" + std::to_string(runs);
      bool done = false;
      while (!done && kills < wanted) {
        const Outcome r = disturbed(words + varied() + in(dir.path(), name), SIGKILL, pick(25));
        ASSERT_TRUE(r.code == -SIGKILL || r.code == 0) << r.code << "\n" << r.err;
        for (const auto& line : r.err_lines())
          if (line.starts_with("resumed after step ")) resumed.insert(line);
        done = r.code == 0;
        kills += !done;
      }
      if (!done) {
        const Outcome last = lowbit_run(words + varied() + in(dir.path(), name));
        ASSERT_EQ(last.code, 0) << last.err;
      }
      expect_equal_runs(dir / "calm", dir / name, lines, epochs);
    }
    EXPECT_GE(resumed.size(), size_t(wanted / 3)) << "hardly any start continued in the middle";
  }
};

TEST_F(KillTest, QuantizedTrainingIsKilledTenTimes) { kill_and_compare(quantized(), 10); }

TEST_F(KillTest, AverageDropPathAndAccumulationAreContinued) { kill_and_compare(averaged(), 6); }

TEST_F(KillTest, StoredLabelsAreContinued) {
  LOWBIT_GOLDEN_OR_SKIP(fkd, "vvtq/fkd");
  // 8 images: one step with a crop each, nine passes of four steps of two images with four crops, then four
  // single-crop epochs of one step.
  const Words words = Words{"train",
                            "--data",
                            fkd + "/imagenet",
                            "--soft-labels",
                            fkd + "/soft_k5",
                            "--num-classes",
                            "1000",
                            "--crops",
                            "4",
                            "--epochs",
                            "41",
                            "--warmup-epochs",
                            "1",
                            "--log-every",
                            "1",
                            "--no-tensorboard"} +
                      tiny_model() + four_bits();
  Words two = words;
  *(std::find(two.begin(), two.end(), "--batch-size") + 1) = "2";
  kill_and_compare(two, 6, 1 + 9 * 4 + 4 + 14, 14);
  const auto lines = rows(dir / "calm");
  Words epochs;
  for (size_t i = 1; i < lines.size(); ++i) epochs.push_back(lines[i][0]);
  EXPECT_EQ(epochs, (Words{"0", "1", "5", "9", "13", "17", "21", "25", "29", "33", "37", "38", "39", "40"}));
}

TEST_F(KillTest, DistillationIsContinued) {
  const Outcome teacher = lowbit_run(Words{"train", "--max-steps", "2", "--warmup-epochs", "0"} +
                                     tiny_model() + tiny_data() + in(dir.path(), "teacher"));
  ASSERT_EQ(teacher.code, 0) << teacher.err;
  kill_and_compare(quantized() + Words{"--quantizer", "ofq", "--qk-reparam", "--teacher-weights",
                                       dir / "teacher/last.safetensors", "--distill", "ofq", "--kd-mode", "3",
                                       "--token-kd", "all", "--learn-bits", "--compat", "reference",
                                       "--cooldown-epochs", "0"},
                   3);
}

TEST_F(KillTest, FreezingAndDampeningAreContinued) {
  // Scales that move a lot and a low threshold: weights freeze from the first epoch on.
  const Words words = quantized() + Words{"--lr",
                                          "1e-2",
                                          "--freeze-threshold",
                                          "0.05",
                                          "--freeze-threshold-final",
                                          "0.02",
                                          "--freeze-momentum",
                                          "0.1",
                                          "--dampening",
                                          "0",
                                          "--dampening-final",
                                          "0.01"};
  kill_and_compare(words, 4);
  double share = 0;
  for (const auto& event : events(dir / "calm"))
    if (event.contains("freeze/share")) {
      EXPECT_GE(event.at("freeze/share").get<double>(), share) << "what is frozen stays";
      share = event.at("freeze/share");
    }
  EXPECT_GT(share, 0.01);
}

TEST_F(KillTest, LearnedBitsUnderABudgetAreContinued) {
  const Words words =
      quantized() +
      Words{"--lr", "2e-2", "--learn-bits", "--bitops-scaler", "1e9", "--learn-bits-until", "0.7"};
  kill_and_compare(words, 3);
  std::vector<float> widths;
  for (const auto& [name, t] : load_checkpoint(dir / "calm/last.safetensors").tensors)
    if (name.ends_with("attn.qkv.nbits")) widths = t.to_vector<float>();
  ASSERT_EQ(widths.size(), 1U);
  EXPECT_LT(widths[0], 3.9f) << "the budget of 0 pulls it down from 4";
}

TEST_F(KillTest, AnnealingAndBinRegularizationAreContinued) {
  kill_and_compare(quantized() + Words{"--cga-range", "0.1", "--bin-regularizer", "--bin-membership", "exact",
                                       "--model-ema", "--model-ema-decay", "0.9"},
                   3);
}

TEST_F(KillTest, SignalsEndInACheckpoint) {
  calm_run(quantized());
  for (const int signal : {SIGTERM, SIGINT, SIGUSR1}) {
    SCOPED_TRACE(signal);
    const std::string name = "signal" + std::to_string(signal);
    const Outcome r = disturbed(quantized() + in(dir.path(), name), signal, 5 + pick(60));
    EXPECT_EQ(r.code, 75) << r.err;
    EXPECT_EQ(r.out, "");
    EXPECT_NE(r.err.find("stopped by signal SIG"), std::string::npos) << r.err;
    const Outcome rest = lowbit_run(quantized() + varied() + in(dir.path(), name));
    EXPECT_EQ(rest.code, 0) << rest.err;
    EXPECT_NE(rest.err.find("resumed after step "), std::string::npos) << rest.err;
    expect_equal_runs(dir / "calm", dir / name);
  }
}

TEST_F(KillTest, TimeAndStepLimitsAreContinued) {
  calm_run(quantized());
  const Words here = in(dir.path(), "limited");
  const Outcome time = lowbit_run(quantized() + Words{"--time-limit", "0:00:01", "--threads", "1"} + here);
  EXPECT_TRUE(time.code == 75 || time.code == 0) << time.err;  // a fast machine needs less than a second
  for (const char* steps : {"5", "60", "64"}) {
    const Outcome r = lowbit_run(quantized() + Words{"--max-steps", steps} + here);
    EXPECT_EQ(r.code, 0) << r.err;
    EXPECT_NE(r.out.find("\"top1\": "), std::string::npos);
  }
  const Outcome r = lowbit_run(quantized() + here);
  EXPECT_EQ(r.code, 0) << r.err;
  for (const char* file : {"last.safetensors"})
    expect_equal_tensors(dir / "calm/" + file, dir / "limited/" + file);
  EXPECT_EQ(events(dir / "limited"), events(dir / "calm"));
  EXPECT_EQ(rows(dir / "limited"), rows(dir / "calm"));

  const std::string state = read_file(dir / "limited/last.state");
  const Outcome again = lowbit_run(quantized() + here);
  EXPECT_EQ(again.code, 0);
  EXPECT_NE(again.err.find("is finished (90 steps): nothing to do"), std::string::npos) << again.err;
  EXPECT_NE(again.out.find("\"steps\": 90"), std::string::npos) << again.out;
  EXPECT_EQ(read_file(dir / "limited/last.state"), state);
}

TEST_F(KillTest, ARunIsContinuedInAnotherFolder) {
  calm_run(quantized());
  ASSERT_EQ(lowbit_run(quantized() + Words{"--max-steps", "70"} + in(dir.path(), "first")).code, 0);
  for (const std::string& from : {dir / "first", dir / "first/last.state"}) {
    const std::string name = from == dir / "first" ? "second" : "third";
    const Outcome r = lowbit_run(quantized() + Words{"--resume", from} + in(dir.path(), name));
    EXPECT_EQ(r.code, 0) << r.err;
    EXPECT_NE(r.err.find("resumed after step 70\n"), std::string::npos) << r.err;
    expect_equal_tensors(dir / "calm/last.safetensors", dir / (name + "/last.safetensors"));
    EXPECT_EQ(read_file(dir / (name + "/best.safetensors")).empty(), false);
  }
}

/// --backward auto is settled when a run begins; what suits another machine does not matter later.
TEST_F(KillTest, ProductsChosenForTheMachineStayWithTheRun) {
  const Words here = in(dir.path(), "run");
  const auto stored = [&] {
    return nlohmann::json::parse(read_file(dir / "run/args.json"))["options"]["backward"]["value"]
        .get<std::string>();
  };
  ASSERT_EQ(lowbit_run(quantized() + Words{"--max-steps", "2"} + here).code, 0);
  const std::string chosen = stored();
  EXPECT_EQ(chosen, current_isa() >= Isa::avx512 ? "int8x3" : "f32");

  const std::string other = chosen == "f32" ? "int8x3" : "f32";
  std::filesystem::remove_all(dir / "run");
  ASSERT_EQ(lowbit_run(quantized() + Words{"--max-steps", "2", "--backward", other} + here).code, 0);
  const Outcome r = lowbit_run(quantized() + Words{"--max-steps", "4"} + here);
  EXPECT_EQ(r.code, 0) << r.err;
  EXPECT_EQ(stored(), other);
  EXPECT_EQ(r.err.find("--backward"), std::string::npos) << r.err;
}

TEST_F(KillTest, ChangedOptionsAreNamed) {
  const Words here = in(dir.path(), "run");
  ASSERT_EQ(lowbit_run(quantized() + Words{"--max-steps", "2"} + here).code, 0);
  Words changed = quantized() + here + Words{"--lr", "1e-4"};
  const Outcome r = lowbit_run(changed);
  EXPECT_EQ(r.code, 0) << r.err;
  EXPECT_NE(r.err.find("options differ from those that the run began with: --lr 5e-4 -> 1e-4\n"),
            std::string::npos)
      << r.err;
}

}  // namespace
}  // namespace lowbit::test
