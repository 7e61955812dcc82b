#include "train/dist/update_sum.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "autograd/ops/broadcast.h"
#include "autograd/ops/pointwise.h"
#include "autograd/ops/reduce.h"
#include "nn/layers/conv2d.h"
#include "tensor/core/error.h"

namespace lowbit {
namespace {

Tensor number(float v) { return Tensor::full({1}, v); }

/// The rule written down: neighbours of one level in pairs, the rest from right to left.
float literal_tree(std::vector<float> level) {
  std::vector<float> rest;
  while (!level.empty()) {
    if (level.size() % 2) rest.push_back(level.back()), level.pop_back();
    std::vector<float> next;
    for (size_t i = 0; i < level.size(); i += 2) next.push_back(level[i] + level[i + 1]);
    level = next;
  }
  float sum = rest[0];
  for (size_t i = 1; i < rest.size(); ++i) sum = rest[i] + sum;
  return sum;
}

TEST(TreeSum, IsTheRule) {
  for (int n = 1; n <= 21; ++n) {
    std::vector<float> v;
    for (int i = 0; i < n; ++i) v.push_back(std::sin(float(i * n)) * std::exp(float(i % 7)));
    TreeSum t;
    for (const float x : v) t.add(number(x));
    EXPECT_EQ(t.take().item<float>(), literal_tree(v)) << n;
  }
}

TEST(TreeSum, RanksAddUpAlignedRuns) {
  std::vector<float> v;
  for (int i = 0; i < 24; ++i) v.push_back(std::sin(float(i)) * std::exp(float(i % 5)));
  for (const int run : {1, 2, 4, 8}) {
    TreeSum ranks;
    for (int first = 0; first < 24; first += run) {
      TreeSum local;
      for (int i = first; i < first + run; ++i) local.add(number(v[size_t(i)]));
      ranks.add(local.take());
    }
    EXPECT_EQ(ranks.take().item<float>(), literal_tree(v)) << run;
  }
}

TEST(TreeSum, KeepsWhatItIsGiven) {
  const Tensor a = number(1), b = number(2);
  TreeSum t;
  t.add(a), t.add(b), t.add(b);
  EXPECT_EQ(t.take().item<float>(), 5);
  EXPECT_EQ(a.item<float>(), 1);
  EXPECT_EQ(b.item<float>(), 2);
}

struct Normed final : Module {
  BatchNorm& norm = child("norm", std::make_unique<BatchNorm>(2, 1e-5, 0.1));
  Variable& unused = param("unused", Tensor::full({3}, 1));
};

struct Chain final : Module {
  Variable& first = param("first", Tensor::full({600, 500}, 0.01));
  Variable& shared = param("shared", Tensor::full({600, 500}, 0.01));
  Variable& last = param("last", Tensor::full({600, 500}, 0.01));
};

/// Mean gradient and running statistics of four micro-batches; parameters without gradient stay so.
TEST(UpdateSum, MeanOfMicroBatches) {
  Normed model;
  ParameterArena arena(model.parameters());
  Communicator one;
  UpdateSum sum(arena, model.state(), one, 4, true);
  EXPECT_EQ(sum.micro_batches(), 4);
  for (int update = 0; update < 2; ++update) {
    const TensorMap before = model.state();
    const float mean0 = before.at("norm.running_mean").to_vector<float>()[0];
    const int64_t count0 = before.at("norm.num_batches_tracked").item<int64_t>();
    float mean = 0, bias = 0;
    for (int i = 0; i < 4; ++i) {
      const float a = float(i + update), b = float(3 * i);
      sum.begin(i);
      const float values[] = {a, 1, b, 2};
      const Variable y = model.norm(Variable(Tensor::from(std::span<const float>(values), {2, 2})));
      const float weight = float(i + 1);
      sum.backward(i, scale(lowbit::sum(y), double(weight)));
      mean += (0.9f * mean0 + 0.1f * (a + b) / 2) / 4;
      bias += 2 * weight / 4;
    }
    sum.finish();
    const TensorMap after = model.state();
    EXPECT_NEAR(after.at("norm.running_mean").to_vector<float>()[0], mean, 1e-6);
    EXPECT_EQ(after.at("norm.num_batches_tracked").item<int64_t>(), count0 + 1);
    EXPECT_FLOAT_EQ(arena.grads().state().at("norm.bias").to_vector<float>()[0], bias);
    for (size_t s = 0; s < arena.size(); ++s)
      EXPECT_EQ(arena.has_grad(s), arena.layout().slices[s].name != "unused");
  }
}

/// What only the first micro-batch has a gradient for is updated too.
TEST(UpdateSum, AGradientOfOneMicroBatchCounts) {
  Chain model;
  ParameterArena arena(model.parameters());
  Communicator one;
  UpdateSum sum(arena, model.state(), one, 2, true);
  for (int i = 0; i < 2; ++i) {
    sum.begin(i);
    sum.backward(i, lowbit::sum(i == 0 ? add(model.first, model.last) : model.last));
  }
  sum.finish();
  const auto gradient = [&](size_t s) { return arena.grads().window(s).to_vector<float>()[7]; };
  EXPECT_TRUE(arena.has_grad(0) && !arena.has_grad(1) && arena.has_grad(2));
  EXPECT_EQ(gradient(0), 0.5f);
  EXPECT_EQ(gradient(2), 1.0f);
}

/// Pretends to be one of two ranks and notes when sums begin.
struct Recorder final : Communicator {
  using Communicator::all_gather;
  bool in_backward = false;
  std::vector<int64_t> during, after;
  int size() const override { return 2; }
  std::vector<std::byte> all_gather(std::span<const std::byte> mine) override {
    std::vector<std::byte> all(mine.begin(), mine.end());
    all.insert(all.end(), mine.begin(), mine.end());
    return all;
  }
  void start_sum(Tensor part) override { (in_backward ? during : after).push_back(part.numel()); }
};

/// From the second update on every bucket is on its way before backward ends, that of a parameter used twice
/// after its last contribution.
TEST(UpdateSum, FastSumsBeginDuringBackward) {
  Chain model;
  ParameterArena arena(model.parameters());
  Recorder two;
  UpdateSum sum(arena, model.state(), two, 2, false);
  const auto loss = [&] {
    const Variable early = mul(model.first, model.shared);
    return lowbit::sum(mul(mul(early, model.shared), model.last));
  };
  for (int update = 0; update < 3; ++update) {
    two.during.clear(), two.after.clear();
    for (int i = 0; i < 2; ++i) {
      sum.begin(i);
      const Variable l = loss();
      two.in_backward = true;
      sum.backward(i, l);
      two.in_backward = false;
      EXPECT_EQ(two.during.size(), update > 0 && i == 1 ? 3u : 0u) << update;
    }
    sum.finish();
    EXPECT_EQ(two.after.size(), update > 0 ? 0u : 3u);
    EXPECT_FLOAT_EQ(arena.grads().window(0).to_vector<float>()[0], 5e-7f) << "this rank's half of the mean";
  }
  sum.begin(0), sum.begin(1);
  EXPECT_THROW(sum.backward(1, add(loss(), lowbit::sum(model.last))), Error) << "another graph";
}

// ---- who a process is

Launch launch(const std::map<std::string, std::string>& environment, int rank = 0, int size = 0,
              int local = -1) {
  return find_launch(rank, size, local, [&](const char* name) {
    const auto it = environment.find(name);
    return it == environment.end() ? nullptr : it->second.c_str();
  });
}

std::string text(const Launch& l) {
  return str_cat(l.from, " ", l.rank, "/", l.size, " local ", l.local_rank, " id ", l.id);
}

TEST(Launch, EveryLauncher) {
  using Environment = std::map<std::string, std::string>;
  EXPECT_EQ(text(launch({})), " 0/1 local 0 id ");
  EXPECT_EQ(text(launch({{"RANK", "5"}, {"WORLD_SIZE", "8"}, {"LOCAL_RANK", "1"}, {"MASTER_PORT", "29500"}})),
            "torchrun 5/8 local 1 id 29500");
  // mpirun inside a Slurm allocation: the daemons' Slurm numbers mean nothing.
  const Environment both = {{"OMPI_COMM_WORLD_RANK", "3"},       {"OMPI_COMM_WORLD_SIZE", "4"},
                            {"OMPI_COMM_WORLD_LOCAL_RANK", "1"}, {"SLURM_PROCID", "0"},
                            {"SLURM_STEP_NUM_TASKS", "2"},       {"SLURM_STEP_ID", "0"}};
  EXPECT_EQ(text(launch(both)), "Open MPI 3/4 local 1 id ");
  EXPECT_EQ(text(launch(both, 1, 2)), "--rank 1/2 local 1 id ");
  EXPECT_EQ(text(launch(both, 1, 2, 0)), "--rank 1/2 local 0 id ");
  const Environment shell = {{"SLURM_PROCID", "2"}, {"SLURM_STEP_NUM_TASKS", "4"}, {"SLURM_JOB_ID", "7"}};
  EXPECT_EQ(launch(shell).size, 1) << "a shell inside an allocation is one process";
  Environment step = shell;
  step["SLURM_STEP_ID"] = "0", step["SLURM_LOCALID"] = "1";
  EXPECT_EQ(text(launch(step)), "Slurm 2/4 local 1 id 7-0");
  EXPECT_EQ(text(launch({{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}})), "PMI 1/2 local 1 id ");
}

TEST(Launch, Mistakes) {
  EXPECT_THROW(launch({{"RANK", "x"}, {"WORLD_SIZE", "8"}}), Error);
  EXPECT_THROW(launch({{"RANK", "8"}, {"WORLD_SIZE", "8"}}), Error);
  EXPECT_THROW(launch({}, 2, 2), Error);
}

}  // namespace
}  // namespace lowbit
