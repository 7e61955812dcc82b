// Iterative freezing: what its kernels do to weights, gradients and scales; OfqGolden.IterativeFreezing has
// the published trackers.

#include "quant/freezing.h"

#include <gtest/gtest.h>

#include <cmath>

#include "autograd/core/node.h"
#include "nn/layers/linear.h"
#include "quant/ops/lsq.h"
#include "quant/scheme/scheme.h"
#include "tests/support/golden.h"
#include "tests/support/op_case.h"

namespace lowbit::test {
namespace {

constexpr const char* kPerTensor = "[.*\\.weight]\nquantizer = lsq\nbits = 3";
constexpr const char* kPerRow =
    "[.*\\.weight]\nquantizer = ofq\ngranularity = channel\nname = lsqw_fn\nstate = .\nbits = 3";
constexpr int kSteps = 6;

struct Box : Module {
  Linear& hold(std::unique_ptr<Linear> l) { return child("layer", std::move(l)); }
};

/// A layer whose weights jump to and fro, as seen by its freezing.
struct Training {
  Box box;
  Linear* layer;
  std::optional<IterativeFreezing> freezing;

  Training(const char* scheme, Device d) {
    Generator random(1);
    layer = &box.hold(std::make_unique<Linear>(70, 40, false, random));
    install(box, parse_scheme(scheme, "test"));
    layer->train();
    (void)layer->quantized_weight();  // the first scale
    box.to(d);
    freezing.emplace(box, OscillationSettings{.momentum = 0.3, .freeze_threshold = 0.45});
  }
  Variable weight() { return box.parameters().at(0).parameter->var; }
  Variable scale() {
    for (const NamedParameter& p : box.parameters())
      if (p.name.ends_with("alpha") || p.name.ends_with(".s")) return p.parameter->var;
    return {};
  }
  void before(int step) {
    for (const NamedParameter& p : box.parameters()) p.parameter->var.zero_grad();
    freezing->before_step();
    const Variable y = layer->quantized_weight();
    y.backward(fill(str_cat("g", step), y.shape(), 0, 1).to(weight().device()));
  }
  void after(int step) {
    const Tensor jump = fill(str_cat("w", step), weight().shape(), 0, 0.06).to(weight().device());
    weight().mutable_data().copy_from(jump);
    freezing->after_update();
  }
};

TEST(Freezing, HoldsWeightsAndGivesScalesTheGradientOfAConstant) {
  for (const char* scheme : {kPerTensor, kPerRow}) {
    SCOPED_TRACE(scheme);
    Training t(scheme, Device{});
    for (int step = 0; step < kSteps; ++step) {
      t.before(step);
      const TensorsByName state = t.freezing->state();
      const bool any = step > 0 && t.freezing->frozen_share() > 0;
      const std::vector<float> g = t.weight().grad().to_vector<float>(),
                               w = t.weight().data().to_vector<float>();
      const Tensor held_now = state.at("layer.weight/frozen").clone();
      const std::vector<float> before = t.scale().grad().to_vector<float>();
      const Coded c = weight_codes(*quantizers(t.box).begin()->second, t.weight());
      const Quantizer::TrainedScale trained =
          quantizers(t.box).begin()->second->trained_scale(t.weight().data());
      const std::vector<int64_t> index = trained.index.to_vector<int64_t>();
      const std::vector<float> scale = c.scale.to_vector<float>(),
                               factors = trained.factors.to_vector<float>();
      t.freezing->before_update();
      const std::vector<float> after = t.scale().grad().to_vector<float>(),
                               cleared = t.weight().grad().to_vector<float>();
      // What is added: factor · Σ G·w/scale over the weights whose gradient is cleared.
      std::vector<double> expected(before.begin(), before.end());
      size_t held = 0;
      for (size_t i = 0; i < g.size(); ++i) {
        if (cleared[i] == g[i]) continue;
        ASSERT_EQ(cleared[i], 0);
        ++held;
        const size_t k = scale.size() == 1 ? 0 : i / 70;
        expected[size_t(index[k])] += double(factors[k]) * double(g[i]) * double(w[i] / scale[k]);
      }
      EXPECT_EQ(held > 0, any);
      for (size_t j = 0; j < after.size(); ++j)
        EXPECT_NEAR(after[j], expected[j], 1e-6 * (1 + std::fabs(expected[j]))) << j;
      t.after(step);
      // A frozen weight has its code at the present scale.
      const Coded now = weight_codes(*quantizers(t.box).begin()->second, t.weight());
      const std::vector<int32_t>
          codes = now.codes.cast(DType::i32).to_vector<int32_t>(),
          wanted = t.freezing->state().at("layer.weight/frozen_code").cast(DType::i32).to_vector<int32_t>();
      const std::vector<uint8_t> mask = t.freezing->state().at("layer.weight/frozen").to_vector<uint8_t>();
      for (size_t i = 0; i < mask.size(); ++i)
        if (mask[i]) {
          ASSERT_EQ(codes[i], wanted[i]) << i;
        }
    }
    EXPECT_GT(t.freezing->frozen_share(), 0.05);
    EXPECT_LT(t.freezing->frozen_share(), 0.95);
  }
}

TEST(FreezingCuda, StepsEqualTheCpu) {
  if (!cuda_present()) GTEST_SKIP() << "no CUDA device";
  for (const char* scheme : {kPerTensor, kPerRow}) {
    SCOPED_TRACE(scheme);
    Training cpu(scheme, Device{}), gpu(scheme, kGpu);
    for (int step = 0; step < kSteps; ++step) {
      for (Training* t : {&cpu, &gpu}) {
        if (step == 3) t->freezing->set_threshold(0.35);
        t->before(step), t->freezing->before_update();
      }
      EXPECT_TRUE(equal_bits(cpu.weight().grad(), gpu.weight().grad().to(Device{}))) << step;
      EXPECT_TRUE(equal_bits(cpu.scale().grad(), gpu.scale().grad().to(Device{}))) << step;
      for (Training* t : {&cpu, &gpu}) t->after(step);
      EXPECT_TRUE(equal_bits(cpu.weight().data(), gpu.weight().data().to(Device{}))) << step;
    }
    const TensorsByName a = cpu.freezing->state(), b = gpu.freezing->state();
    ASSERT_EQ(a.size(), b.size());
    for (const auto& [name, t] : a) EXPECT_TRUE(equal_bits(t, b.at(name))) << name;
    EXPECT_GT(cpu.freezing->frozen_share(), 0.05);
  }
}

}  // namespace
}  // namespace lowbit::test
