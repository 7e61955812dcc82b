// What a training step minimises, with and without a teacher.

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "autograd/ops/broadcast.h"
#include "autograd/ops/cross_entropy.h"
#include "nn/models/vit.h"
#include "tests/support/golden.h"
#include "train/step/objective.h"
#include "train/step/quantize.h"

namespace lowbit::test {
namespace {

VitConfig two_heads() {
  VitConfig c;
  c.name = "two", c.distilled = true, c.image_size = 16, c.patch = 8, c.width = 24, c.depth = 2, c.heads = 3;
  c.classes = 5;
  return c;
}

Loader::Batch batch() {
  const int64_t labels[] = {3, 0, 4};
  Loader::Batch b;
  b.fields = {fill("x", {3, 3, 16, 16}, 0, 2), Tensor::from(std::span<const int64_t>(labels), {3})};
  b.size = 3;
  return b;
}

Options with(const std::map<std::string, std::string>& settings) {
  Options o(*find_verb("train"));
  for (const auto& [name, value] : settings) o.set(name, value, OptionOrigin::command_line);
  return o;
}

float loss_of(const Options& o, ImageModel& model, ImageModel* teacher) {
  Objective objective(o, model, teacher);
  Variable logits;
  return objective(batch(), logits).data().item<float>();
}

TEST(Objective, ModesOfDistillation) {
  VisionTransformer student(two_heads(), 1), teacher(two_heads(), 2);
  teacher.eval();
  const auto h = student.heads(Variable(batch().fields[0]));
  const Variable mean = teacher(Variable(batch().fields[0])),
                 cls = teacher.heads(Variable(batch().fields[0])).cls;
  const auto value = [](const Variable& v) { return v.data().item<float>(); };
  const float hard = value(cross_entropy(h.cls, batch().fields[1])),
              smooth = value(cross_entropy(h.cls, batch().fields[1], 0.1));
  const auto mode = [&](const char* m, const char* compat, const char* quantizer = "ofq") {
    return loss_of(with({{"distill", "ofq"}, {"kd-mode", m}, {"compat", compat}, {"quantizer", quantizer}}),
                   student, &teacher);
  };
  EXPECT_FLOAT_EQ(mode("0", "none"), value(teacher_cross_entropy(h.cls, mean)));
  EXPECT_FLOAT_EQ(mode("1", "none"), value(teacher_cross_entropy(h.dist, mean)) + smooth);
  // Published: the teacher's class head, labels as they are.
  EXPECT_FLOAT_EQ(mode("1", "reference"), value(teacher_cross_entropy(h.dist, cls)) + hard);
  EXPECT_FLOAT_EQ(mode("1", "reference", "vvtq"), mode("1", "none")) << "another program's habits";
  EXPECT_GT(mode("2", "none"), mode("1", "none") + 0.1f);
  EXPECT_GT(mode("3", "none"), mode("2", "none") + 0.1f);
}

TEST(Objective, LayersThatAgreeCostNothing) {
  VisionTransformer model(two_heads(), 1), same(two_heads(), 1);
  for (const char* tokens : {"none", "last", "all"}) {
    const Options plain = with({{"distill", "ofq"}}),
                  compared = with({{"distill", "ofq"}, {"kd-mode", "3"}, {"token-kd", tokens}});
    EXPECT_NEAR(loss_of(plain, model, &same), loss_of(compared, model, &same), 1e-5) << tokens;
  }
}

TEST(Objective, MapsAreThoseOfTheAttentionLayers) {
  for (const bool fused : {false, true}) {
    SCOPED_TRACE(fused);
    VitConfig c = two_heads();
    c.qk_reparam = fused;
    VisionTransformer model(c, 1);
    FeatureWatch watch(model, true, true);
    model.heads(Variable(batch().fields[0]));
    const auto maps = watch.maps(true);
    ASSERT_EQ(maps.size(), 2U);
    ASSERT_EQ(watch.tokens().size(), 2U);
    for (const ScoreMaps& m : maps)
      for (const Variable& v : {m.qq, m.kk, m.vv})
        EXPECT_EQ(v.shape(), Shape({3, 3, 6, 6}));  // 4 patches + 2 tokens
    EXPECT_EQ(watch.tokens()[1].shape(), Shape({3, 6, 24}));
    maps[1].kk.backward(Tensor::full(maps[1].kk.shape(), 1));
    int reached = 0;
    for (const NamedParameter& p : model.parameters())
      reached += p.name == (fused ? "blocks.1.attn.k.weight" : "blocks.1.attn.qkv.weight") &&
                 p.parameter->var.grad().defined();
    EXPECT_EQ(reached, 1);
    watch.clear();
    EXPECT_TRUE(watch.maps(false).empty());
  }
}

TEST(Objective, TheSecondHeadWithoutATeacher) {
  for (const char* compat : {"none", "reference"}) {
    VisionTransformer model(two_heads(), 1);
    const Options o = with({{"compat", compat}, {"quantizer", "ofq"}});
    Objective objective(o, model, nullptr);
    Variable logits;
    objective(batch(), logits).backward();
    for (const NamedParameter& p : model.parameters())
      if (p.name == "head_dist.weight") {
        EXPECT_EQ(p.parameter->var.grad().defined(), std::string(compat) == "none");
      }
  }
}

TEST(Objective, DecayFollowsTheOptions) {
  const auto decayed = [](const Options& o) {
    VisionTransformer model(two_heads(), 1);
    choose_decay(model, o);
    std::set<std::string> names;
    for (const NamedParameter& p : model.parameters())
      if (p.parameter->decay) names.insert(p.name);
    return names;
  };
  const auto usual = decayed(with({}));
  EXPECT_FALSE(usual.contains("pos_embed"));
  EXPECT_TRUE(usual.contains("blocks.0.attn.qkv.weight"));
  EXPECT_FALSE(decayed(with({{"decay-exempt", R"(head\.weight,.*attn\.qkv\.weight)"}}))
                   .contains("blocks.0.attn.qkv.weight"));
  EXPECT_EQ(decayed(with({{"decay-exempt", R"(head\.weight,.*attn\.qkv\.weight)"}})).size(),
            usual.size() - 3);
  const auto published = decayed(with({{"compat", "reference"}}));
  EXPECT_TRUE(published.contains("pos_embed") && published.contains("cls_token"));
  EXPECT_FALSE(published.contains("head.bias"));
  EXPECT_THROW(decayed(with({{"decay-exempt", "("}})), Error);
}

TEST(Objective, ThePublishedConversionBeginsAnew) {
  const auto model = [] { return std::make_unique<VisionTransformer>(two_heads(), 1); };
  const auto kept = model(), fresh = model();
  EXPECT_TRUE(reinitialise_as_published(*kept, with({{"quantizer", "ofq"}})).empty());
  const auto names = reinitialise_as_published(*fresh, with({{"quantizer", "ofq"}, {"compat", "reference"}}));
  EXPECT_EQ(names.size(), 8U) << "weight and bias of qkv and proj in two blocks";
  const float bound = 1 / std::sqrt(24.0f);
  for (const auto& [name, t] : fresh->state()) {
    const bool listed = std::find(names.begin(), names.end(), name) != names.end();
    EXPECT_EQ(t.to_vector<float>() == kept->state().at(name).to_vector<float>(), !listed) << name;
    if (!listed) continue;
    for (const float v : t.to_vector<float>()) EXPECT_LE(std::fabs(v), bound);
  }
}

}  // namespace
}  // namespace lowbit::test
