// Steps as graphs, inside the process: the same bits as kernel by kernel, what a step asks of the device, and
// how many kernels it takes.

#include "train/step/step_runner.h"

#include <gtest/gtest.h>

#include "autograd/core/node.h"
#include "autograd/ops/cross_entropy.h"
#include "nn/models/sret.h"
#include "nn/models/vit.h"
#include "quant/lsq_pass.h"
#include "quant/scheme/scheme.h"
#include "tensor/core/context.h"
#include "tensor/core/device_graph.h"
#include "tensor/core/draws.h"
#include "tensor/engine/accumulate.h"
#include "tests/support/device_calls.h"
#include "tests/support/golden.h"
#include "tests/support/op_case.h"
#include "train/dist/update_sum.h"
#include "train/optim/clip.h"
#include "train/optim/ema.h"
#include "train/optim/optimizer.h"
#include "train/step/quantize.h"
#include "train/step/step_values.h"

namespace lowbit::test {
namespace {

const Device kGpu{Device::Kind::cuda, 0};
constexpr int kSteps = 7;  ///< three eager, one captured, three replayed

Options with(std::initializer_list<std::pair<const char*, const char*>> settings) {
  Options o(*find_verb("train"));
  for (const auto& [name, value] : settings) o.set(name, value, OptionOrigin::command_line);
  return o;
}

struct Result {
  std::vector<float> losses;
  TensorMap state;
  std::vector<bool> replayed;
  std::vector<DeviceCalls> calls;  ///< of each step
};

/// One of two ranks, the other of which has the same numbers.
struct Twin : Communicator {
  using Communicator::all_gather;
  int size() const override { return 2; }
  std::vector<std::byte> all_gather(std::span<const std::byte> mine) override {
    std::vector<std::byte> all(mine.begin(), mine.end());
    all.insert(all.end(), mine.begin(), mine.end());
    return all;
  }
  void all_to_all(const Tensor& from, Tensor& to) override { all_gather(from.select(0, 0), to); }
  void all_gather(const Tensor& mine, Tensor& all) override {
    for (int64_t r = 0; r < 2; ++r) Tensor(all.select(0, r)).copy_from(mine);
  }
};

/// The same with sums that a graph may hold.
struct FastTwin final : Twin {
  bool agrees = true;  ///< the other one has captured its step too
  int64_t started = 0, finished = 0, asked = 0, watched = 0, beside_backward = 0;
  bool captures() const override { return true; }
  void start_sum(Tensor part) override {
    ++started;
    accumulate({part.mutable_view(), part.view()}, part.device());
  }
  void finish_sums() override { ++finished; }
  void launched() override { ++watched; }
};

/// Some steps with drop path, a rate that changes, clipping and a running average.
Result train(std::unique_ptr<ImageModel> model, const Options& o, StepRunner::Mode mode, int steps = kSteps,
             Communicator& ranks = alone()) {
  auto* const fast = dynamic_cast<FastTwin*>(&ranks);
  const ImageConfig& c = model->config();
  const Shape images{2, c.in_channels, c.image_size, c.image_size};
  quantize(*model, o);
  model->to(kGpu);
  {  // the first pass sets the scales
    const NoGrad off;
    model->eval();
    (*model)(Variable(fill("calibration", images, 0, 2).to(kGpu)));
    for (auto& [name, q] : quantizers(*model))
      if (q->quant_state() == QuantState::observe) q->set_quant_state(QuantState::fixed, "calibrated");
  }
  model->train();
  context().generator = Generator(9, 1);
  ParameterArena arena(model->parameters());
  Optimizer optimizer(arena, {});
  Ema ema(arena, model->state(), 0.9);
  UpdateSum sum(arena, model->state(), ranks, 1, !fast);
  LsqPass lsq(*model);
  StepValues values(int64_t(arena.size()) * kHyperColumns, kGpu);
  Tensor x = Tensor::zeros(images, DType::f32, kGpu), labels = Tensor::zeros({2}, DType::i64, kGpu), loss;
  LogOptions quiet;
  quiet.threshold = LogLevel::error;
  Log log(quiet);
  StepRunner runner(mode, kGpu, !fast || fast->agrees, log);
  Result r;
  for (int k = 0; k < steps; ++k) {
    x.copy_from(fill(str_cat("x", k), images, 0, 2));
    const int64_t classes[] = {k % c.classes, (k + 3) % c.classes};
    labels.copy_from(Tensor::from(std::span<const int64_t>(classes), {2}));
    values.draws = uint64_t(k) << 36;
    StepParts p;
    p.begin = [&] { values.upload(); };
    p.compute = [&] {
      const DeviceDraws draws(values.device_draws());
      context().generator.set_state(0);
      sum.begin(0);
      const LsqPass::Scope scales(&lsq, ranks.size() == 1);
      const Variable l = cross_entropy((*model)(Variable(x)), labels, 0.1);
      loss = l.data();
      sum.backward(0, l);
      if (fast) fast->beside_backward += fast->started > 0 && capturing();
      lsq.flush();
      sum.finish_local();
    };
    if (ranks.size() > 1) p.exchange = [&] { sum.exchange(); };
    if (fast) {
      fast->started = 0;
      p.captured = {.agree = [&](bool mine) { return ++fast->asked, mine && fast->agrees; },
                    .launched = [&] { fast->launched(); }};
    }
    p.prepare = [&] {
      values.update = optimizer.hyper(1e-3 * (k + 1));
      values.upload();
    };
    p.update = [&] {
      sum.complete();
      clip_gradients(arena, ClipMode::norm, 0.5);
      optimizer.step(values.device_update({int64_t(arena.size()), kHyperColumns}));
      ema.update();
    };
    const DeviceCalls before = device_calls();
    r.replayed.push_back(runner.run("step", p));
    r.calls.push_back(device_calls(before));
    r.losses.push_back(loss.item<float>());
  }
  for (const auto& [name, t] : model->state()) r.state[name] = t.to({}).clone();
  for (const auto& [name, t] : ema.state()) r.state["ema." + name] = t.to({}).clone();
  return r;
}

using Make = std::function<std::unique_ptr<ImageModel>()>;

void expect_graphs_change_nothing(const Make& make, const Options& o, Communicator& ranks = lowbit::alone()) {
  const Result alone = train(make(), o, StepRunner::Mode::eager, kSteps, ranks),
               graph = train(make(), o, StepRunner::Mode::graph, kSteps, ranks);
  EXPECT_EQ(graph.losses, alone.losses);
  for (const auto& [name, t] : alone.state) EXPECT_TRUE(equal_bits(t, graph.state.at(name))) << name;
  EXPECT_EQ(alone.replayed, std::vector<bool>(kSteps, false));
  EXPECT_EQ(graph.replayed, (std::vector<bool>{false, false, false, false, true, true, true}));
  if (!counts_device_calls()) return;
  const DeviceCalls& last = graph.calls.back();
  if (ranks.size() > 1) {  // beside the graphs only the sum
    EXPECT_EQ(last.graphs, 2);
    EXPECT_EQ(last.allocations, 0);
    EXPECT_LE(last.launches + last.copies, 32);
    return;
  }
  EXPECT_EQ(last.graphs, 1);
  EXPECT_EQ(last.copies, 1) << "one small upload";
  EXPECT_EQ(last.launches + last.allocations + last.waits, 0);
  // Kernel by kernel a step does not wait either, nor does it allocate, once its memory is there and every
  // scale is set.
  EXPECT_EQ(alone.calls.back().allocations + alone.calls.back().waits, 0);
}

std::unique_ptr<ImageModel> small_vit(int64_t depth, int64_t width = 24, int64_t heads = 3, bool qkr = false,
                                      double dropout = 0.1) {
  VitConfig c;
  c.name = "small", c.image_size = 16, c.patch = 8, c.width = width, c.depth = depth, c.heads = heads;
  c.classes = 7, c.drop_path = 0.3, c.dropout = dropout, c.qk_reparam = qkr;
  return std::make_unique<VisionTransformer>(c, 5);
}

TEST(StepRunnerCuda, GraphsOfLsqSteps) {
  if (!cuda_present()) GTEST_SKIP() << "no CUDA device";
  expect_graphs_change_nothing([] { return small_vit(1); }, with({{"wbits", "4"}, {"abits", "4"}}));
}

TEST(StepRunnerCuda, GraphsOfOfqSteps) {
  if (!cuda_present()) GTEST_SKIP() << "no CUDA device";
  expect_graphs_change_nothing([] { return small_vit(1, 24, 3, true); },
                               with({{"wbits", "2"}, {"abits", "2"}, {"quantizer", "ofq"}}));
}

std::unique_ptr<ImageModel> small_sret() {
  SretConfig c;
  c.image_size = 16, c.classes = 5, c.base = {8}, c.heads = {2}, c.blocks = {1};
  c.groups1 = {2}, c.groups2 = {2}, c.drop_path = 0.3, c.dropout = 0.1;
  return std::make_unique<SretTransformer>(c, 3);
}

TEST(StepRunnerCuda, GraphsOfBatchNormAndRandomOrders) {
  if (!cuda_present()) GTEST_SKIP() << "no CUDA device";
  expect_graphs_change_nothing(small_sret, with({{"wbits", "32"}, {"abits", "32"}}));
}

/// Gradients and running statistics pass through a sum between two graphs.
TEST(StepRunnerCuda, GraphsAroundASum) {
  if (!cuda_present()) GTEST_SKIP() << "no CUDA device";
  Twin two;
  expect_graphs_change_nothing(small_sret, with({{"wbits", "32"}, {"abits", "32"}}), two);
}

/// Sums that can be captured are part of the one graph of the step, where they begin beside backward.
TEST(StepRunnerCuda, GraphsWithTheSumsInside) {
  if (!cuda_present()) GTEST_SKIP() << "no CUDA device";
  for (const Make& make : {Make(small_sret), Make([] { return small_vit(1); })}) {
    const Options o = with({{"wbits", "32"}, {"abits", "32"}});
    FastTwin eager, whole;
    const Result a = train(make(), o, StepRunner::Mode::eager, kSteps, eager),
                 b = train(make(), o, StepRunner::Mode::graph, kSteps, whole);
    EXPECT_EQ(a.losses, b.losses);
    for (const auto& [name, t] : a.state) EXPECT_TRUE(equal_bits(t, b.state.at(name))) << name;
    EXPECT_EQ(b.replayed, (std::vector<bool>{false, false, false, false, true, true, true}));
    EXPECT_EQ(whole.asked, 1);
    EXPECT_EQ(whole.beside_backward, 1) << "no sum had begun when the captured backward pass ended";
    EXPECT_EQ(whole.watched, 4) << "every launch";
    EXPECT_EQ(whole.finished, 4) << "three eager steps and the captured one";
    EXPECT_EQ(eager.finished, kSteps);
    if (!counts_device_calls()) continue;
    const DeviceCalls& last = b.calls.back();
    EXPECT_EQ(last.graphs, 1);
    EXPECT_EQ(last.copies, 1) << "one small upload";
    EXPECT_EQ(last.launches + last.allocations + last.waits, 0);
  }
}

/// Where another process cannot capture its step, this one runs its own kernel by kernel too.
TEST(StepRunnerCuda, AGraphThatOnlyThisProcessHasIsNotLaunched) {
  if (!cuda_present()) GTEST_SKIP() << "no CUDA device";
  const Options o = with({{"wbits", "32"}, {"abits", "32"}});
  FastTwin eager, other;
  other.agrees = false;
  const Result a = train(small_sret(), o, StepRunner::Mode::eager, kSteps, eager),
               b = train(small_sret(), o, StepRunner::Mode::graph, kSteps, other);
  EXPECT_EQ(a.losses, b.losses);
  for (const auto& [name, t] : a.state) EXPECT_TRUE(equal_bits(t, b.state.at(name))) << name;
  EXPECT_EQ(b.replayed, std::vector<bool>(kSteps, false));
  EXPECT_EQ(other.asked, 1);
  EXPECT_EQ(other.watched, 0);
}

/// A step of DeiT-Tiny's blocks with 4-bit weights and activations: how many kernels a block takes, and the
/// rest (docs/performance.md), with dropout and without, as in the recipes. Width and tokens change nothing.
TEST(StepRunnerCuda, LaunchesOfAFourBitStep) {
  if (!cuda_present() || !counts_device_calls()) GTEST_SKIP() << "no emulated CUDA device";
  for (const char* method : {"lsq", "vvtq"})
    for (const double dropout : {0.1, 0.0}) {
      const Options o = with({{"wbits", "4"}, {"abits", "4"}, {"quantizer", method}});
      int64_t kernels[2];
      for (const int64_t depth : {1, 2}) {
        auto model = small_vit(depth, 48, 3, false, dropout);
        const DeviceCalls c = train(std::move(model), o, StepRunner::Mode::eager, 2).calls.back();
        kernels[depth - 1] = c.launches + c.copies;
      }
      const int64_t block = kernels[1] - kernels[0], rest = kernels[0] - block;
      std::printf("%s, dropout %g: %d kernels and copies a block, %d beside, %d for 12 blocks\n", method,
                  dropout, int(block), int(rest), int(12 * block + rest));
      RecordProperty(str_cat(method, "_", dropout, "_block"), int(block));
      RecordProperty(str_cat(method, "_", dropout, "_rest"), int(rest));
      EXPECT_LE(block, dropout > 0 ? 53 : 45);
      EXPECT_LE(rest, 46);
    }
}

}  // namespace
}  // namespace lowbit::test
