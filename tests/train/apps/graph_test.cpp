// Training with and without graphs of the device: the same bits after steps in which everything changes that
// changes from step to step, an evaluation in between and a graph for every phase.

#include <gtest/gtest.h>

#include "tests/support/op_case.h"
#include "tests/train/apps/runs.h"

namespace lowbit::test {
namespace {

constexpr int kSome = -1;  ///< more than one

struct Method {
  const char* name;
  Words options;
  int graphs = 1;  ///< phases of the run that last long enough
  Words data = tiny_data(24, 4);
};
void PrintTo(const Method& m, std::ostream* out) { *out << m.name; }

const Method kMethods[] = {
    {"float", tiny_model() + Words{"--model-ema", "--clip-grad", "1", "--drop", "0.1"}},
    {"lsq", tiny_model() + four_bits() + Words{"--quantizer", "lsq", "--model-ema", "--clip-grad", "1"}},
    {"vvtq",
     tiny_model() + four_bits() +
         Words{"--quantizer", "vvtq", "--bin-regularizer", "--recompute", "--dampening", "0.1",
               "--dampening-final", "0.2", "--epochs", "2"},
     2},
    {"ofq", tiny_model() + four_bits() +
                Words{"--quantizer", "ofq", "--qk-reparam", "--cga-range", "0.05", "--recompute"}},
    {"one_bit", tiny_model() + Words{"--wbits", "1", "--abits", "1", "--calibration-images", "8"}},
    {"sgd", tiny_model() + four_bits() + Words{"--quantizer", "lsq+", "--opt", "sgd", "--accumulate", "2"}, 1,
     tiny_data(48, 4)},
    {"frozen", tiny_model() + four_bits() +
                   Words{"--quantizer", "lsq", "--lr", "2e-2", "--freeze-threshold", "0.2",
                         "--freeze-momentum", "0.5", "--dampening", "0.05", "--dampening-final", "0.1"}},
    {"widths",  // which a budget pulls below 3.5 on the way
     tiny_model() + four_bits() +
         Words{"--quantizer", "vvtq", "--lr", "5e-2", "--learn-bits", "--bitops-scaler", "1e9", "--max-steps",
               "28", "--epochs", "5", "--learn-bits-until", "0.8"},
     kSome},
    {"mixed",
     tiny_model() + Words{"--mixup", "0.8", "--cutmix", "1", "--mixup-mode", "elem"},
     1,
     {"--data", LOWBIT_SOURCE_DIR "/data/samples/flowers", "--limit-train", "25", "--limit-val", "5"}},
};

Words changing_steps() {
  return {"--lr",
          "1e-3",
          "--sched-per-step",
          "--warmup-epochs",
          "1",
          "--drop-path",
          "0.3",
          "--max-steps",
          "11",
          "--log-every",
          "2",
          "--epochs",
          "3"};
}

int count(const std::string& text, const std::string& what) {
  int n = 0;
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++n;
  return n;
}

class GraphCuda : public ::testing::TestWithParam<Method> {};

TEST_P(GraphCuda, ReplayedStepsEqualSteps) {
  if (!cuda_present()) GTEST_SKIP() << "no CUDA device";
  const Method& m = GetParam();
  TempDir dir;
  for (const char* graph : {"off", "on"}) {
    const Outcome r = lowbit_run(
        Words{"train", "--output", dir.path(), "--run", graph, "--device", "cuda", "--graph", graph} +
        m.data + changing_steps() + m.options);
    ASSERT_EQ(r.code, 0) << r.err;
    const std::string log = read_file(dir / graph + "/log.txt");
    const int captured = count(log, "captured as a graph");
    if (graph == std::string("on") && m.graphs == kSome)
      EXPECT_GT(captured, 1) << log;
    else
      EXPECT_EQ(captured, graph == std::string("on") ? m.graphs : 0) << log;
  }
  for (const char* file : {"/last.safetensors", "/last.state"})
    expect_equal_tensors(dir / "off" + file, dir / "on" + file);
}
INSTANTIATE_TEST_SUITE_P(, GraphCuda, ::testing::ValuesIn(kMethods),
                         [](const auto& method) { return std::string(method.param.name); });

TEST(GraphsCuda, SaysWhyNot) {
  if (!cuda_present()) GTEST_SKIP() << "no CUDA device";
  TempDir dir;
  const Words run = Words{"train", "--output", dir.path(), "--device", "cuda", "--max-steps", "1"} +
                    tiny_model() + tiny_data();
  setenv("LOWBIT_CHECK_FINITE", "1", 1);
  const Outcome automatic = lowbit_run(run + Words{"--run", "auto"});
  const Outcome strict = lowbit_run(run + Words{"--run", "on", "--graph", "on"});
  unsetenv("LOWBIT_CHECK_FINITE");
  EXPECT_EQ(automatic.code, 0) << automatic.err;
  EXPECT_EQ(count(read_file(dir / "auto" + "/log.txt"),
                  "the steps are not captured as a graph: LOWBIT_CHECK_FINITE"),
            1);
  EXPECT_EQ(strict.code, 2);
  EXPECT_EQ(strict.complaint(), "--graph on: LOWBIT_CHECK_FINITE reads every result");
}

}  // namespace
}  // namespace lowbit::test
