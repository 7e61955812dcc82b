// Confidence-guided annealing against the published masks, masked gradients and restored weights.

#include <gtest/gtest.h>

#include "autograd/core/node.h"
#include "autograd/ops/pointwise.h"
#include "nn/layers/linear.h"
#include "quant/annealing.h"
#include "quant/scheme/scheme.h"
#include "tests/support/golden.h"

namespace lowbit::test {
namespace {

struct Box : Module {
  Linear& hold(std::unique_ptr<Linear> l) { return child("layer", std::move(l)); }
};

TEST(Annealing, GoldenMasks) {
  LOWBIT_GOLDEN_OR_SKIP(path, "ofq/cga_mask.safetensors");
  const GoldenFile g(path);
  int masks = 0;
  for (const auto& [name, c] : g.cases()) {
    SCOPED_TRACE(name);
    const auto at = [&, n = name](const char* key) { return g.tensor(n + "/" + key); };
    const Tensor w = at("in/w");
    Generator random(1);
    Box box;
    box.hold(std::make_unique<Linear>(w.size(1), w.size(0), false, random));
    SchemeOptions o;
    o.wbits = c.at("bits");
    install(box, load_scheme("ofq", o));
    placed(box);
    Variable weight = box.parameters().at(0).parameter->var;
    weight.mutable_data().copy_from(w);
    if (name.starts_with("qk_variant")) {  // its mask is discarded: plain StatsQ
      const Variable y = dynamic_cast<Linear&>(box.at("layer")).quantized_weight();
      expect_close(y.data(), at("out/wq"), 1e-6, 1e-7, "wq");
      y.backward(at("g_out"));
      expect_close(weight.grad(), at("g_in/w"), 0, 0, "gradient");
      continue;
    }
    ConfidenceAnnealing annealing(box, c.at("boundary_range"));
    scale(weight, 0).backward(w);                 // makes a gradient to write into
    const bool whole = g.has(name + "/in/grad");  // other cases hold the mask only
    if (whole) weight.grad().copy_from(at("in/grad"));
    annealing.before_update();
    const std::vector<float> free = annealing.masks().at(0).second.to_vector<float>(),
                             frozen = at("out/frozen").cast(DType::f32).to_vector<float>();
    ASSERT_EQ(free.size(), size_t(w.numel()));
    for (size_t i = 0; i < free.size(); ++i) ASSERT_NE(free[i], frozen[i]) << i;
    ++masks;
    if (!whole) continue;
    EXPECT_NEAR(annealing.free_share(), 1 - c.at("frozen_share").get<double>(), 1e-6);
    expect_close(weight.grad(), at("out/grad_masked"), 0, 0, "masked gradient");
    weight.mutable_data().copy_from(at("in/w_after_step"));
    annealing.after_update();
    expect_close(weight.data(), at("out/w_restored"), 0, 0, "restored");
  }
  EXPECT_GT(masks, 0);
}

}  // namespace
}  // namespace lowbit::test
