// Several processes, started by mpirun: the bits of one process, and a clean end when one of them dies,
// hangs, fails or is told to stop. On the CPU, and with the steps of two devices as graphs, over NCCL (on the
// emulator that of tests/cuda_emulation) and over MPI.

#include <dirent.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <optional>
#include <random>

#include "data/soft_label/label_store.h"
#include "data/soft_label/pack_format.h"
#include "tensor/core/backend.h"
#include "tests/train/apps/runs.h"

namespace lowbit::test {
namespace {

namespace fs = std::filesystem;

bool mpi_here() {
  const bool library = fs::exists(fs::path(LOWBIT_PROGRAM).replace_filename("liblowbit_mpi.so"));
  return library && std::system("command -v mpirun >/dev/null 2>&1") == 0;
}

/// Ranks of this test only: their run folder is in their command line.
std::optional<pid_t> pid_of_rank(const std::string& folder, int rank) {
  const std::string wanted = "OMPI_COMM_WORLD_RANK=" + std::to_string(rank) + std::string(1, '\0');
  for (const auto& entry : fs::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != name.npos) continue;
    const std::string words = read_file(entry.path() / "cmdline");
    if (words.starts_with(LOWBIT_PROGRAM) && words.find(folder) != words.npos &&
        read_file(entry.path() / "environ").find(wanted) != std::string::npos)
      return pid_t(std::stol(name));
  }
  return std::nullopt;
}

/// A 24-bit BMP of 16 × 16 pixels that differ.
void write_image(const std::string& path, int seed) {
  std::string b(54 + 16 * 16 * 3, '\0');
  const auto u32 = [&](size_t at, uint32_t v) {
    for (int i = 0; i < 4; ++i) b[at + size_t(i)] = char(v >> (8 * i));
  };
  b[0] = 'B', b[1] = 'M', b[26] = 1, b[28] = 24;
  u32(2, uint32_t(b.size())), u32(10, 54), u32(14, 40), u32(18, 16), u32(22, 16), u32(34, 16 * 16 * 3);
  for (size_t i = 54; i < b.size(); ++i) b[i] = char((i * size_t(seed + 3) * 2654435761u) >> 13);
  fs::create_directories(fs::path(path).parent_path());
  write_file(path, b);
}

struct RanksTest : testing::Test {
  TempDir dir;
  std::mt19937 random{20261121};
  std::string program = LOWBIT_PROGRAM;

  static void SetUpTestSuite() {
    // Ranks may be root's and more than processors; tests that run beside this one use them too.
    for (const char* name :
         {"OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "OMPI_MCA_rmaps_base_oversubscribe",
          "PRTE_ALLOW_RUN_AS_ROOT", "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM"})
      setenv(name, "1", 1);
    setenv("OMPI_MCA_hwloc_base_binding_policy", "none", 1);
    setenv("OMPI_MCA_btl_vader_single_copy_mechanism", "none", 1);  // not allowed in containers
    setenv("ASAN_OPTIONS", "detect_leaks=0", 1);                    // MPI keeps what it allocates
  }
  void SetUp() override {
    if (!mpi_here()) GTEST_SKIP() << "no MPI: mpirun and liblowbit_mpi.so are needed";
  }

  Words command(int ranks, const Words& words) const {
    // The launcher reports one exit code; the shell writes down that of every rank.
    const char* script = R"(trap : TERM; "$0" "$@"; code=$?; echo "code $code" >&2; exit $code)";
    return ranks ? Words{"-n", std::to_string(ranks), "sh", "-c", script, program} + words : words;
  }
  static int count(const std::string& text, const std::string& what) {
    int n = 0;
    for (size_t at = 0; (at = text.find(what, at)) != text.npos; ++at) ++n;
    return n;
  }
  /// 0 ranks: the program alone.
  Outcome run(int ranks, const Words& words) const {
    return Process(command(ranks, words), ranks ? "mpirun" : program).wait();
  }
  std::string folder(const std::string& name) const { return dir / name; }
  Words train(const std::string& name, const Words& more) const {
    return Words{"train", "--output", dir.path(), "--run", name, "--log-every", "1", "--no-tensorboard"} +
           more;
  }
  void expect_equal_bits(const Words& words, std::initializer_list<int> ranks) {
    const Outcome one = run(0, train("one", words));
    ASSERT_EQ(one.code, 0) << one.err;
    for (const int n : ranks) {
      SCOPED_TRACE(std::to_string(n) + " ranks");
      const std::string name = "of" + std::to_string(n);
      const Outcome r = run(n, train(name, words));
      ASSERT_EQ(r.code, 0) << r.err;
      EXPECT_EQ(r.err.find(str_cat(n, " processes, an update has ")) != std::string::npos, n > 1) << r.err;
      expect_equal_results(folder("one"), folder(name));
    }
  }
  static Words tiny(int images = 72) {
    return Words{"--epochs", "2", "--warmup-epochs", "1", "--global-batch", "16"} + tiny_model() +
           tiny_data(images, 22);
  }
  /// Sixteen images of two classes and stored labels for them.
  Words folder_of_images() {
    const std::string data = folder("data");
    for (const char* split : {"train", "val"})
      for (int c = 0; c < 2; ++c)
        for (int i = 0; i < 8; ++i)
          write_image(str_cat(data, "/", split, "/class", c, "/", i, ".bmp"), 8 * c + i);
    return Words{"--epochs", "2", "--warmup-epochs", "0", "--global-batch", "8"} + tiny_model() +
           Words{"--batch-size", "2", "--data", data};
  }
  std::string packed_labels() {
    PackWriter out(folder("labels"), pack::Layout{SoftLabelType::full, 0, 2, false, false});
    for (int c = 0; c < 2; ++c)
      for (int i = 0; i < 8; ++i) {
        CropLabels l;
        l.type = SoftLabelType::full, l.probabilities_each = 2;
        for (int k = 0; k < 3; ++k) {
          const float p = 0.1f + 0.2f * float(k) + 0.05f * float(i);
          l.crops.push_back({0.1f * float(k), 0.05f * float(i), 0.5f, 0.6f, k == 1});
          l.probabilities.insert(l.probabilities.end(), {p, 1 - p});
        }
        out.add(str_cat("class", c, "/", i), l);
      }
    out.finish();
    return folder("labels");
  }

  /// Starts ranks, lets them log a few steps and calls `disturb` with the process of one of them.
  Outcome disturbed(int ranks, const Words& words, const std::string& name, int victim, int steps,
                    const std::function<void(pid_t)>& disturb) {
    Process p(command(ranks, train(name, words)), "mpirun");
    while (p.running() && count(p.err_so_far(), "Train: ") < steps)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const auto pid = pid_of_rank(dir.path(), victim);
    EXPECT_TRUE(pid.has_value());
    if (pid) disturb(*pid);
    return p.wait();
  }
};

// ---- the same bits

TEST_F(RanksTest, Float) { expect_equal_bits(tiny() + Words{"--clip-grad", "1"}, {1, 2, 4}); }

TEST_F(RanksTest, FourBitsWithRegularizer) {
  expect_equal_bits(tiny() + four_bits() + Words{"--quantizer", "lsq", "--bin-regularizer", "--epochs", "3"},
                    {2, 4});
}

TEST_F(RanksTest, AnnealedTwoBits) {
  expect_equal_bits(tiny() + four_bits() +
                        Words{"--quantizer", "ofq", "--wbits", "2", "--qk-reparam", "--cga-range", "0.01"},
                    {2, 4});
}

TEST_F(RanksTest, DropoutAverageAndThreeRanks) {
  expect_equal_bits(tiny(80) + Words{"--global-batch", "24", "--drop", "0.1", "--drop-path", "0.3",
                                     "--model-ema", "--model-ema-decay", "0.9", "--sched-per-step"},
                    {3});
}

TEST_F(RanksTest, AugmentedImages) {
  expect_equal_bits(folder_of_images() + Words{"--aa", "rand-m9-mstd0.5-inc1", "--mixup", "0.8", "--cutmix",
                                               "1", "--reprob", "0.5", "--aug-repeats", "2"},
                    {2, 4});
}

TEST_F(RanksTest, SoftLabels) {
  expect_equal_bits(
      folder_of_images() + Words{"--soft-labels", packed_labels(), "--crops", "2", "--epochs", "6"}, {2, 4});
}

TEST_F(RanksTest, BatchNormSlow) {
  expect_equal_bits({"--model",
                     "sret_t",
                     "--image-size",
                     "32",
                     "--synthetic",
                     "--limit-train",
                     "16",
                     "--limit-val",
                     "6",
                     "--batch-size",
                     "2",
                     "--global-batch",
                     "8",
                     "--epochs",
                     "2",
                     "--warmup-epochs",
                     "0",
                     "--threads",
                     "1",
                     "--workers",
                     "0"},
                    {2, 4});
}

TEST_F(RanksTest, EvaluationIsShared) {
  const Words words = {"eval",         "--json", "--batch-size", "4", "--synthetic", "--limit-val",      "22",
                       "--image-size", "16",     "--threads",    "1", "--model",     "tinyvit_patch8_64"};
  const auto figures = [](const Outcome& o) {
    EXPECT_EQ(o.code, 0) << o.err;
    auto j = nlohmann::json::parse(o.out);
    j.erase("img_per_s"), j.erase("peak_mib");
    return j;
  };
  EXPECT_EQ(figures(run(4, words)), figures(run(0, words)));
}

/// A verb that trains three times: the ranks stay together.
TEST_F(RanksTest, RecipesBuiltOnOneAnotherSlow) {
  folder_of_images();
  const Outcome r = run(2, {"repro", "ofq-deit-t-w2a2-cga", "--smoke", "--data", folder("data"), "--output",
                            dir.path(), "--threads", "1"});
  EXPECT_EQ(r.code, 0) << r.err;
  const std::string verdict = "ofq-deit-t-w2a2-cga: ran 2 steps; published 64.33, no verdict";
  const size_t at = r.out.find(verdict);
  EXPECT_NE(at, std::string::npos) << r.out;
  EXPECT_EQ(r.out.find(verdict, at + 1), std::string::npos) << r.out;
}

/// Sums in another order: close, not equal. Buckets are summed while backward runs.
TEST_F(RanksTest, FastSumsAreClose) {
  const Words words = tiny() + Words{"--opt", "sgd", "--lr", "1e-3", "--embed-dim", "96", "--depth", "3"};
  ASSERT_EQ(run(0, train("one", words)).code, 0);
  for (const int n : {2, 4}) {
    const std::string name = str_cat("fast", n);
    const Outcome r = run(n, train(name, words + Words{"--no-deterministic"}));
    ASSERT_EQ(r.code, 0) << r.err;
    const auto a = events(folder("one")), b = events(folder(name));
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i)
      EXPECT_NEAR(a[i].at("loss").get<double>(), b[i].at("loss").get<double>(), 1e-5) << i;
  }
}

// ---- two devices

bool nccl_here() { return fs::exists(fs::path(LOWBIT_PROGRAM).replace_filename("liblowbit_nccl.so")); }

struct RanksCuda : RanksTest {
  void SetUp() override {
    RanksTest::SetUp();
    if (gpu_count() < 2) GTEST_SKIP() << "a device for each of two ranks is needed";
  }
  /// An epoch of six updates of four micro-batches.
  static Words few() {
    return tiny(48) +
           Words{"--batch-size", "2", "--global-batch", "8", "--epochs", "1", "--warmup-epochs", "0"};
  }
  /// Two ranks with their steps kernel by kernel and as graphs: the same bits, and what the log says of them.
  void expect_graphs_change_nothing(const Words& words, const std::string& over,
                                    const std::string& captured) {
    for (const char* graph : {"off", "on"}) {
      const Outcome r = run(2, train(graph, words + Words{"--device", "cuda", "--graph", graph}));
      ASSERT_EQ(r.code, 0) << r.err;
      EXPECT_EQ(count(r.err, captured), graph == std::string("on")) << r.err;
      EXPECT_EQ(count(r.err, "gradients are summed over " + over), 1) << r.err;
    }
    expect_equal_results(folder("off"), folder("on"));
  }
  /// And those of one process.
  void expect_bits_of_one(const Words& words, const std::string& over) {
    expect_graphs_change_nothing(words, over, "in two parts around the sum over the processes");
    const Outcome one = run(0, train("one", words + Words{"--device", "cuda"}));
    ASSERT_EQ(one.code, 0) << one.err;
    expect_equal_results(folder("one"), folder("on"));
  }
};

/// A program without NCCL beside it.
TEST_F(RanksCuda, FloatStepsOverMpi) {
  fs::create_directory(folder("program"));
  for (const char* file : {"lowbit", "liblowbit_cuda.so", "liblowbit_mpi.so"})
    fs::copy_file(fs::path(LOWBIT_PROGRAM).replace_filename(file), fs::path(folder("program")) / file);
  program = folder("program") + "/lowbit";
  expect_bits_of_one(tiny() + Words{"--global-batch", "8", "--limit-train", "40", "--clip-grad", "1",
                                    "--drop-path", "0.3", "--model-ema"},
                     "MPI and the host: NCCL is missing");
}

TEST_F(RanksCuda, QuantizedStepsOfSeveralBatches) {
  if (!nccl_here()) GTEST_SKIP() << "no liblowbit_nccl.so";
  expect_bits_of_one(few() + four_bits() + Words{"--quantizer", "vvtq", "--dampening", "0.1"}, "NCCL");
}

TEST_F(RanksCuda, FastSums) {
  if (!nccl_here()) GTEST_SKIP() << "no liblowbit_nccl.so";
  expect_graphs_change_nothing(few() + four_bits() + Words{"--quantizer", "lsq", "--no-deterministic"},
                               "NCCL", ", sums over the processes included");
}

/// Two ranks without a launcher, hence without MPI: NCCL is started over a file and carries everything.
struct RanksByHandCuda : RanksCuda {
  void SetUp() override {
    if (gpu_count() < 2) GTEST_SKIP() << "a device for each of two ranks is needed";
    if (!nccl_here()) GTEST_SKIP() << "no liblowbit_nccl.so";
  }
  static Words rank(const char* number) {
    return {"--device", "cuda", "--rank", number, "--world-size", "2", "--log-ranks", "all"};
  }
};

/// Killed or stopped, in a graph with sums or in a sum between two graphs: the other rank has to find out.
TEST_F(RanksByHandCuda, ARankThatIsLostIsNoticed) {
  const auto expect = [&](const char* name, const Words& more, int signal, const char* captured) {
    SCOPED_TRACE(name);
    const Words words = train(name, few() +
                                        Words{"--batch-size", "4", "--limit-train", "4800", "--rank-timeout",
                                              "5", "--checkpoint-every", "5"} +
                                        more);
    Process lead(words + rank("0")), other(words + rank("1"));
    while (lead.running() && count(lead.err_so_far(), "Train: ") < 8)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const auto begin = std::chrono::steady_clock::now();
    other.kill(signal);
    const Outcome r = lead.wait();
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(30));
    EXPECT_EQ(r.code, 6) << r.err;
    EXPECT_NE(r.err.find("rank 0 stops: no answer for 5 s ("), std::string::npos) << r.err;
    EXPECT_NE(r.err.find("a rank is dead or hung; the last checkpoint of the run is kept\n"),
              std::string::npos)
        << r.err;
    EXPECT_EQ(count(r.err, captured), 1) << r.err;
  };
  expect("stopped", {"--no-deterministic"}, SIGSTOP, ", sums over the processes included");
  expect("killed", {}, SIGKILL, "in two parts around the sum over the processes");
}

TEST_F(RanksByHandCuda, OneDeviceForTwoRanksIsRefused) {
  const Words words = train("run", few() + Words{"--rank-timeout", "30", "--local-rank", "0"});
  Process lead(words + rank("0")), other(words + rank("1"));
  for (Process* p : {&lead, &other}) {
    const Outcome r = p->wait();
    EXPECT_EQ(r.code, 6) << r.err;
    EXPECT_NE(r.err.find("NCCL start: invalid usage"), std::string::npos) << r.err;
  }
  EXPECT_FALSE(fs::exists(folder(".nccl-id")));
}

// ---- the end of a rank

TEST_F(RanksTest, ARankThatDiesIsNoticed) {
  const Words words = tiny(480) + four_bits() + Words{"--checkpoint-every", "3"};
  ASSERT_EQ(run(0, train("one", words)).code, 0);
  // The launcher would end the others at once; here they have to find out themselves.
  setenv("OMPI_MCA_orte_enable_recovery", "1", 1);
  const int victim = int(random() % 4), step = 3 + int(random() % 20);
  const auto begin = std::chrono::steady_clock::now();
  const Outcome r = disturbed(4, words + Words{"--rank-timeout", "5"}, "run", victim, step,
                              [](pid_t pid) { ::kill(pid, SIGKILL); });
  unsetenv("OMPI_MCA_orte_enable_recovery");
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(120));
  for (int rank = 0; rank < 4; ++rank) {
    const bool left = r.err.find(str_cat("lowbit: rank ", rank, " stops: ")) != std::string::npos;
    EXPECT_EQ(left, rank != victim) << r.err;
  }
  EXPECT_EQ(count(r.err, "code 6\n"), 3) << r.err;
  EXPECT_NE(r.err.find(str_cat("rank ", victim, ": no answer for ")), std::string::npos) << r.err;
  const Outcome rest = run(2, train("run", words));  // fewer ranks go on
  EXPECT_EQ(rest.code, 0) << rest.err;
  EXPECT_NE(rest.err.find("resumed after step "), std::string::npos) << rest.err;
  expect_equal_results(folder("one"), folder("run"));
}

TEST_F(RanksTest, ARankThatHangsIsNoticed) {
  for (const int victim : {1, 0}) {
    SCOPED_TRACE(victim);
    const Outcome r = disturbed(3, tiny(480) + Words{"--global-batch", "12", "--rank-timeout", "5"},
                                str_cat("run", victim), victim, 3, [](pid_t pid) { ::kill(pid, SIGSTOP); });
    EXPECT_EQ(r.code, 6) << r.err;
    EXPECT_NE(r.err.find(str_cat("rank ", victim, ": no answer for 5 s (")), std::string::npos) << r.err;
    EXPECT_NE(r.err.find(", dead or hung; the last checkpoint of the run is kept\n"), std::string::npos)
        << r.err;
  }
}

TEST_F(RanksTest, ASignalToOneRankStopsAll) {
  const Words words = tiny(480) + four_bits();
  ASSERT_EQ(run(0, train("one", words)).code, 0);
  int victim = 3;
  for (const int signal : {SIGTERM, SIGUSR1}) {
    const std::string name = str_cat("run", signal);
    const Outcome r =
        disturbed(4, words, name, victim, 4 + int(random() % 20), [&](pid_t pid) { ::kill(pid, signal); });
    EXPECT_EQ(r.code, 75) << r.err;
    // The launcher may end a shell before it has written.
    EXPECT_GT(count(r.err, "code 75\n"), 0) << r.err;
    EXPECT_EQ(count(r.err, "code 75\n"), count(r.err, "code ")) << r.err;
    EXPECT_NE(r.err.find(victim ? "stopped by another rank" : "stopped by signal SIG"), std::string::npos)
        << r.err;
    const Outcome rest = run(victim ? 2 : 0, train(name, words));
    EXPECT_EQ(rest.code, 0) << rest.err;
    EXPECT_NE(rest.err.find("resumed after step "), std::string::npos) << rest.err;
    expect_equal_results(folder("one"), folder(name));
    victim = 0;
  }
}

TEST_F(RanksTest, AnErrorOfOneRankEndsAll) {
  const Words words = folder_of_images();
  write_file(folder("data") + "/train/class1/3.bmp", "this is not a photograph");
  const Outcome r = run(4, train("run", words));
  EXPECT_EQ(r.code, 3) << r.err;
  EXPECT_NE(r.err.find("/train/class1/3.bmp"), std::string::npos) << r.err;
}

TEST_F(RanksTest, MistakesAreExplained) {
  const auto expect = [&](int ranks, const Words& words, const std::string& text) {
    const Outcome r = run(ranks, train("run", words));
    EXPECT_EQ(r.code, 2) << r.err;
    EXPECT_NE(r.err.find(text), std::string::npos) << r.err;
  };
  expect(2, tiny() + Words{"--global-batch", "0", "--accumulate", "3"},
         "--accumulate must be a power of two (got 3)");
  expect(3, tiny(), "--global-batch must be a multiple of --batch-size times processes (got 16, 4 x 3)");
  expect(0, tiny() + Words{"--rank", "1", "--world-size", "4"},
         "4 processes on the CPU need MPI: start them with mpirun or srun --mpi=pmix (--rank starts no MPI "
         "processes)");
  expect(0, tiny() + Words{"--rank", "4", "--world-size", "4"}, "--rank: the rank must be below");
}

}  // namespace
}  // namespace lowbit::test
