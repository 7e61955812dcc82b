// The dampening loss: its op, the published case, and the sum over a model.

#include "quant/ops/dampening.h"

#include <gtest/gtest.h>

#include <cmath>

#include "autograd/core/node.h"
#include "nn/models/vit.h"
#include "quant/ops/lsq.h"
#include "quant/scheme/scheme.h"
#include "quant/weight_regularizer.h"
#include "tests/support/golden.h"
#include "tests/support/op_case.h"

namespace lowbit::test {
namespace {

std::vector<InputSpec> weights(Shape s) { return {{.name = "w", .shape = s, .lo = -3, .hi = 3}}; }

OpCase per_tensor() {
  return {.name = "dampening_per_tensor",
          .inputs = weights({2, 3, 7}),
          .fn =
              [](std::span<const Variable> v) {
                const DType t = v[0].dtype();
                const Tensor q = fill("q", v[0].shape(), 0, 2).cast(t), s = Tensor::full({1}, 0.9, t);
                return dampening(v[0], q.to(v[0].device()), s.to(v[0].device()), Coded::kPerTensor, -2, 1);
              },
          .perf = {.inputs = weights({768, 3072})}};
}

OpCase op() {
  return {.name = "dampening",
          .inputs = weights({4, 9}),
          .fn =
              [](std::span<const Variable> v) {
                const DType t = v[0].dtype();
                const Tensor q = fill("q", v[0].shape(), 0, 2).cast(t),
                             s = fill("s", {v[0].size(-2)}, 1, 0.3).cast(t);
                return dampening(v[0], q.to(v[0].device()), s.to(v[0].device()), -2, -2, 1);
              },
          .sizes =
              [](int64_t n) {
                return weights({1, n});
              },
          .misuse = {{"dtype",
                      [] {
                        dampening(Variable(Tensor::zeros({2, 3})), Tensor::zeros({2, 3}, DType::f64),
                                  Tensor::zeros({1}), Coded::kPerTensor, -2, 1);
                      },
                      "dampening: w_q must be like w, s of its type (got w=[2, 3] f32 cpu, w_q=[2, 3] f64 "
                      "cpu, s=[1] f32 cpu)"}}};
}

const bool registered = register_op_cases("Dampening", {op(), per_tensor()});

TEST(OfqGolden, Dampening) {
  LOWBIT_GOLDEN_OR_SKIP(path, "ofq/losses.safetensors");
  const GoldenFile g(path);
  int cases = 0;
  for (const auto& [name, settings] : g.cases()) {
    if (!name.starts_with("dampening")) continue;
    ++cases;
    const Variable w(g.tensor(name + "/in/w"), true);
    const Levels l = Levels::of(settings.at("bits"), true);
    const Tensor s = g.tensor(name + "/p/s");
    const Variable loss = dampening(w, g.tensor(name + "/p/wq"), s, -2, l.lo, l.hi);
    loss.backward();
    expect_close(loss.data(), g.tensor(name + "/out/loss"), g.rtol(), g.atol(), name);
    expect_close(w.grad(), g.tensor(name + "/g_in/w"), g.rtol(), g.atol(), name + "/g_in/w");
  }
  EXPECT_GT(cases, 0);
}

/// Steps along the gradient bring every weight to its level, whatever the quantizer.
TEST(Dampening, BringsWeightsToTheirLevels) {
  VitConfig c;
  c.image_size = 16, c.patch = 8, c.width = 12, c.depth = 1, c.heads = 2, c.classes = 3;
  for (const char* scheme : {"lsq", "vvtq", "ofq"}) {
    SCOPED_TRACE(scheme);
    VisionTransformer model(c, 0);
    install(model, load_scheme(scheme, {.wbits = 3, .abits = 8}));
    (void)model(Variable(fill("x", {2, 3, 16, 16}, 0, 1)));
    std::vector<float> losses;
    for (int step = 0; step < 3; ++step) {
      const Variable loss = dampening_regularizer(model);
      losses.push_back(loss.data().item<float>());
      for (const NamedParameter& p : model.parameters()) p.parameter->var.zero_grad();
      loss.backward();
      for (const NamedParameter& p : model.parameters()) {
        if (!p.parameter->var.grad().defined()) continue;
        EXPECT_TRUE(p.name.ends_with("weight")) << p.name;
        float* const w = p.parameter->var.mutable_data().data<float>();
        const std::vector<float> grad = p.parameter->var.grad().to_vector<float>();
        for (size_t i = 0; i < grad.size(); ++i) w[i] -= 0.2f * grad[i];
      }
    }
    EXPECT_GT(losses[0], 0);
    EXPECT_LT(losses[1], 0.7f * losses[0]);
    EXPECT_LT(losses[2], 0.7f * losses[1]);
  }
  VisionTransformer plain(c, 0);
  EXPECT_FALSE(dampening_regularizer(plain).defined());
}

}  // namespace
}  // namespace lowbit::test
