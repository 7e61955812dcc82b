#include "train/step/sensitivity.h"

#include <gtest/gtest.h>

#include <set>

#include "nn/models/factory.h"
#include "quant/scheme/scheme.h"
#include "tensor/core/error.h"

namespace lowbit {
namespace {

std::unique_ptr<ImageModel> quantized(const char* name, const char* scheme) {
  auto model = plan_model(name, {}).build(1);
  install(*model, load_scheme(scheme));
  return model;
}

std::set<std::string> names_of(const std::vector<QuantizerGroup>& groups) {
  std::set<std::string> names;
  for (const auto& [name, members] : groups) EXPECT_TRUE(names.insert(name).second) << name;
  return names;
}

TEST(Sensitivity, ModulesPartitionTheQuantizers) {
  const std::pair<const char*, std::set<std::string>> cases[] = {
      {"tinyvit_patch8_64", {"patch_embed", "blocks.0.attn", "blocks.3.mlp", "head"}},
      {"swin_t_quant",
       {"features.0.0", "features.1.0.attn", "features.5.5.mlp", "features.2.reduction", "head"}}};
  for (const auto& [name, expected] : cases) {
    SCOPED_TRACE(name);
    const auto model = quantized(name, "lsq");
    const auto groups = quantizer_groups(*model, "module");
    const std::set<std::string> names = names_of(groups);
    for (const std::string& e : expected) EXPECT_TRUE(names.count(e)) << e;
    std::set<Quantizer*> seen;
    for (const auto& [group, members] : groups)
      for (Quantizer* q : members) EXPECT_TRUE(seen.insert(q).second) << group;
    EXPECT_EQ(seen.size(), quantizers(*model).size());
    EXPECT_EQ(quantizer_groups(*model, "slot").size(), seen.size());
  }
}

TEST(Sensitivity, FamiliesHoldTheSamePartOfAllBlocks) {
  const auto model = quantized("tinyvit_patch8_64", "lsq");
  const auto groups = quantizer_groups(*model, "family");
  const std::set<std::string> names = names_of(groups);
  for (const char* e :
       {"blocks.*.attn", "blocks.*.attn.v", "blocks.*.attn.qkv", "blocks.*.mlp", "blocks.*.mlp.fc1", "head"})
    EXPECT_TRUE(names.count(e)) << e;
  for (const auto& [name, members] : groups)
    if (name == "blocks.*.attn.v") {
      EXPECT_EQ(members.size(), 4u);
    }
}

/// What is on in each evaluation; the states come back, and the order is by the effect.
TEST(Sensitivity, SwitchesOneGroupAtATime) {
  const auto model = quantized("tinyvit_patch8_64", "lsq");
  const auto all = quantizers(*model);
  const auto groups = quantizer_groups(*model, "module");
  for (const bool spare : {false, true}) {
    int64_t call = 0;
    const Sensitivity s = measure_sensitivity(*model, groups, spare, [&](SensitivityRow& row) {
      size_t on = 0;
      for (const auto& [slot, q] : all) on += q->quant_state() != QuantState::off;
      const size_t members = call < 2 ? 0 : groups[size_t(call - 2)].second.size();
      EXPECT_EQ(on, call == 0 ? 0 : call == 1 ? all.size() : spare ? all.size() - members : members);
      row.top1 = double(call == 0 ? 90 : call == 1 ? 50 : 50 + 3 * (call % 5)), row.loss = double(++call);
      return true;
    });
    EXPECT_EQ(call, int64_t(groups.size()) + 2);
    for (size_t i = 1; i < s.rows.size(); ++i) EXPECT_GE(s.rows[i - 1].effect, s.rows[i].effect);
    for (const SensitivityRow& r : s.rows) EXPECT_EQ(r.effect, spare ? r.top1 - 50 : 90 - r.top1);
    for (const auto& [slot, q] : all) EXPECT_EQ(q->quant_state(), QuantState::learned);
  }
  EXPECT_THROW(measure_sensitivity(*plan_model("tinyvit_patch8_64", {}).build(1), {}, true,
                                   [](SensitivityRow&) { return true; }),
               Error);
}

}  // namespace
}  // namespace lowbit
