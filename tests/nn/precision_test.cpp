// Context::gemm bf16 in whole models: what a step keeps for backward, recomputation, and training beside f32.

#include <gtest/gtest.h>

#include <cmath>
#include <memory>

#include "autograd/core/node.h"
#include "autograd/ops/cross_entropy.h"
#include "nn/models/swin.h"
#include "nn/models/vit.h"
#include "tensor/core/context.h"
#include "tests/support/golden.h"
#include "tests/support/op_case.h"

namespace lowbit::test {
namespace {

class Precision : public ::testing::Test {
 protected:
  void TearDown() override { context() = before_; }

 private:
  Context before_ = context();
};

std::unique_ptr<ImageModel> vit(double drop_path = 0.2) {
  VitConfig c = vit_config("tinyvit_patch8_64");
  c.image_size = 32, c.drop_path = drop_path;
  return std::make_unique<VisionTransformer>(c, 3);
}
std::unique_ptr<ImageModel> swin() {
  SwinConfig c;
  c.image_size = 32, c.patch = 2, c.width = 24, c.window = 4, c.classes = 10, c.drop_path = 0.2;
  c.depths = {2, 2}, c.heads = {3, 6};
  return std::make_unique<SwinTransformer>(c, 3);
}

Variable images(int64_t batch) { return Variable(fill("images", {batch, 3, 32, 32}, -1, 1)); }

Variable loss_of(ImageModel& model, int64_t batch) {
  Tensor labels = Tensor::empty({batch}, DType::i64);
  for (int64_t i = 0; i < batch; ++i) labels.data<int64_t>()[i] = i % 10;
  return cross_entropy(model(images(batch)), labels);
}

std::map<std::string, size_t> kept(ImageModel& model, MathMode mode) {
  context().gemm = mode;
  context().generator = Generator(9);
  model.train();
  return saved_memory(loss_of(model, 16));
}
size_t total(const std::map<std::string, size_t>& bytes) {
  size_t n = 0;
  for (const auto& [op, b] : bytes) n += b;
  return n;
}

TEST_F(Precision, Bf16KeepsTheStreamAndTheInputsOfGeluAtHalfTheSize) {
  for (const bool windows : {false, true}) {
    const auto model = windows ? swin() : vit();
    const auto wide = kept(*model, MathMode::f32), narrow = kept(*model, MathMode::bf16);
    EXPECT_EQ(2 * narrow.at("gelu"), wide.at("gelu"));
    const size_t keys = windows ? 16 : 17, row = windows ? 16 : 24;  // whole words of 16 bytes
    EXPECT_EQ(narrow.at("softmax") * 2 * keys, wide.at("softmax") * row);
    EXPECT_LT(double(narrow.at("layer_norm")), 0.6 * double(wide.at("layer_norm")))
        << "all but means, deviations, gains, and the input of Swin's first norm";
    EXPECT_LT(double(total(narrow)), 0.7 * double(total(wide)));
    EXPECT_EQ(total(kept(*model, MathMode::tf32)), total(wide));
  }
}

TEST_F(Precision, RecomputationGivesTheSameBits) {
  context().gemm = MathMode::bf16;
  for (const bool windows : {false, true}) {
    std::vector<std::vector<Tensor>> gradients;
    std::vector<Tensor> losses;
    for (const bool again : {false, true}) {
      const auto model = windows ? swin() : vit();
      model->recompute_blocks = again;
      model->train();
      context().generator = Generator(9);
      const Variable loss = loss_of(*model, 4);
      loss.backward();
      losses.push_back(loss.data());
      gradients.emplace_back();
      for (const NamedParameter& p : model->parameters()) gradients.back().push_back(p.parameter->var.grad());
    }
    EXPECT_TRUE(equal_bits(losses[0], losses[1]));
    for (size_t i = 0; i < gradients[0].size(); ++i)
      EXPECT_TRUE(equal_bits(gradients[0][i], gradients[1][i])) << i;
  }
}

/// Gradient descent with steps of bounded length on one batch.
std::vector<double> losses(MathMode mode, int steps) {
  context().gemm = mode;
  context().generator = Generator(9);
  const auto model = vit(0);
  model->train();
  std::vector<double> all;
  for (int s = 0; s < steps; ++s) {
    const Variable loss = loss_of(*model, 8);
    all.push_back(double(loss.data().item<float>()));
    loss.backward();
    double square = 0;
    for (const NamedParameter& p : model->parameters())
      if (const Tensor g = p.parameter->var.grad(); g.defined())
        for (const float v : g.to_vector<float>()) square += double(v) * double(v);
    const float step = float(0.05 / std::max(1.0, std::sqrt(square)));
    for (const NamedParameter& p : model->parameters()) {
      Variable v = p.parameter->var;
      const Tensor g = v.grad();
      if (!g.defined()) continue;
      float* const w = v.mutable_data().data<float>();
      for (int64_t i = 0; i < g.numel(); ++i) w[i] -= step * g.data_const<float>()[i];
      v.zero_grad();
    }
  }
  return all;
}

TEST_F(Precision, TrainingInBf16StaysNearF32) {
  const std::vector<double> wide = losses(MathMode::f32, 40), narrow = losses(MathMode::bf16, 40);
  double early = 0, late = 0;  // small differences grow with the steps
  for (size_t i = 0; i < wide.size(); ++i) {
    double& worst = i < 20 ? early : late;
    worst = std::max(worst, std::abs(narrow[i] - wide[i]));
  }
  EXPECT_GT(early, 0) << "bf16 is another computation";
  EXPECT_LT(early, 0.01);
  EXPECT_LT(late, 0.2);
  for (const auto& run : {wide, narrow}) EXPECT_LT(run.back(), 0.7 * run.front());
}

}  // namespace
}  // namespace lowbit::test
