#include "nn/models/factory.h"

#include <gtest/gtest.h>

#include "autograd/core/node.h"
#include "nn/models/sret.h"
#include "nn/models/swin.h"
#include "tensor/core/context.h"
#include "tests/support/golden.h"

namespace lowbit {
namespace {

/// Every family at its full size: parameters as published, and the products that its slots feed.
TEST(ModelFactory, KnowsTheFamiliesByTheirPublishedSizes) {
  const std::map<std::string, int64_t> published = {{"deit_tiny_patch16_224", 5717416},
                                                    {"deit_tiny_distilled_patch16_224", 5910800},
                                                    {"swin_tiny_patch4_window7_224", 28288354},
                                                    {"swin_tiny_patch4_window7_224_quant", 28288354},
                                                    {"swin_t", 28288354},
                                                    {"swin_s", 49606258},
                                                    {"swin_b", 87768224},
                                                    {"sret_t", 4755979}};
  for (const auto& [name, count] : published) {
    const auto model = plan_model(name, {}).build(0);
    int64_t parameters = 0;
    for (const NamedParameter& p : model->parameters()) parameters += p.parameter->var.numel();
    EXPECT_EQ(parameters, count) << name;
    std::set<std::string> slots;
    for (const NamedSlot& s : model->slots()) slots.insert(s.name);
    for (const ProductCost& c : model->product_costs()) {
      EXPECT_TRUE(slots.contains(c.left) && slots.contains(c.right))
          << name << ": " << c.left << ", " << c.right;
      EXPECT_GT(c.macs(), 0) << name << ": " << c.name;
    }
    for (const auto& [slot, info] : model->slot_info())
      EXPECT_TRUE(slots.contains(slot)) << name << ": " << slot;
  }
}

/// What slot_info() says is what passes.
TEST(ModelFactory, SlotsCarryWhatTheyAreSaidToCarry) {
  struct Shapes final : Transform {
    Shape seen;
    Variable apply(const Variable& x) override {
      seen = x.shape();
      return x;
    }
  };
  for (const std::string name : {"deit_tiny_patch16_224", "swin_t", "sret_t"}) {
    const auto model = plan_model(name, {.image_size = name == "swin_t" ? 64 : 32, .classes = 5}).build(0);
    std::map<std::string, std::shared_ptr<Shapes>> probes;
    for (const NamedSlot& s : model->slots()) {
      probes[s.name] = std::make_shared<Shapes>();
      s.slot->set(probes[s.name], "");
    }
    model->eval();
    NoGrad off;
    const auto& c = model->config();
    EXPECT_EQ((*model)(Variable(test::fill("x", {1, 3, c.image_size, c.image_size}, 0, 1))).shape(),
              (Shape{1, 5}));
    for (const auto& [slot, info] : model->slot_info()) {
      const Shape& seen = probes.at(slot)->seen;
      if (name == "sret_t" && slot.find(".attn.") != std::string::npos) {
        EXPECT_EQ(seen.numel() % info.shape[-1], 0) << slot;  // the second run has other groups
        continue;
      }
      EXPECT_EQ(seen.numel(), info.shape.numel()) << name << ": " << slot << " " << seen.str();
      EXPECT_EQ(seen[-1], info.shape[-1]) << name << ": " << slot;
    }
  }
}

/// A run that keeps only the inputs of blocks has the same gradients, bit for bit.
TEST(ModelFactory, RecomputedBlocksHaveTheSameGradients) {
  for (const std::string name : {"swin_t", "sret_t"}) {
    const Variable x(test::fill("x", {2, 3, name == "swin_t" ? 64 : 32, name == "swin_t" ? 64 : 32}, 0, 1));
    std::vector<Tensor> first;
    for (const bool again : {false, true}) {
      const auto model = plan_model(name, {.image_size = x.size(2), .classes = 5, .drop_path = 0.2}).build(3);
      context().generator.set_state(0);
      model->recompute_blocks = again;
      (*model)(x).backward(test::fill("g", {2, 5}, 0, 1));
      size_t i = 0;
      for (const NamedParameter& p : model->parameters()) {
        const Tensor g = p.parameter->var.grad();
        if (!again) {
          first.push_back(g);
        } else if (g.defined() || first[i].defined()) {
          EXPECT_TRUE(equal_bits(g, first[i])) << name << ": " << p.name;
        }
        ++i;
      }
    }
  }
}

TEST(ModelFactory, NamesTheKnownModels) {
  EXPECT_THROW(plan_model("swin_giant", {}), Error);
  EXPECT_THROW(plan_model("swin_t", {.depth = 3}), Error);
  EXPECT_THROW(plan_model("sret_t", {.image_size = 40}).build(0), Error);
}

}  // namespace
}  // namespace lowbit
