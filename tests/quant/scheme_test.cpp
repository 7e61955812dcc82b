#include "quant/scheme/scheme.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "autograd/core/node.h"
#include "nn/models/swin.h"
#include "nn/models/vit.h"
#include "quant/quantizer/lsq_quantizer.h"
#include "quant/quantizer/minmax_quantizer.h"
#include "tests/support/golden.h"
#include "tests/support/temp_dir.h"

namespace lowbit {
namespace {

using testing::HasSubstr;

VitConfig small_deit(bool split) {
  VitConfig c = vit_config("deit_tiny_patch16_224");
  c.image_size = 16, c.patch = 4, c.width = 24, c.heads = 3, c.depth = 2, c.classes = 10;
  c.split_qkv = split;
  return c;
}

/// The stored list: what quantized DeiT leaves in float, for any depth.
std::vector<std::string> float_slots_of_deit(int64_t depth, bool split) {
  std::vector<std::string> all;
  for (int64_t i = 0; i < depth; ++i) {
    const std::string b = "blocks." + std::to_string(i) + ".";
    if (split)
      for (const char* p : {"proj_q", "proj_k", "proj_v"}) all.push_back(b + "attn." + p + ".out");
    else
      all.push_back(b + "attn.qkv.out");
    for (const char* s :
         {"norm1.out", "attn.proj.out", "attn_sum", "norm2.out", "mlp.fc1.out", "mlp.fc2.out", "mlp_sum"})
      all.push_back(b + s);
  }
  all.push_back("norm.out");
  all.push_back("head.out");
  return all;
}

std::set<std::string> as_set(const std::vector<std::string>& v) { return {v.begin(), v.end()}; }

TEST(Scheme, LeavesTheStoredListOfSlotsInFloat) {
  for (const std::string& name : scheme_names())
    for (const bool split : {false, true}) {
      VisionTransformer model(small_deit(split), 1);
      const Report r = install(model, load_scheme(name));
      EXPECT_EQ(as_set(r.left_float), as_set(float_slots_of_deit(2, split))) << name;
      EXPECT_EQ(r.installed.size() + r.left_float.size(), model.slots().size()) << name;
      // per block: in, q, k, v, probs, context, mlp.in, mlp.hidden and the weights; patch embedding and head
      EXPECT_EQ(r.installed.size(), size_t(2 * (8 + (split ? 6 : 4)) + 4)) << name;
    }
}

/// What a training step of the model keeps for backward, by op.
std::map<std::string, size_t> kept_by_step(ImageModel& model, const Scheme& scheme) {
  install(model, scheme);
  model.train();
  const Variable images(test::fill("images", {2, 3, 16, 16}, 0, 1));
  (void)model(images);  // scales are chosen from the values
  return saved_memory(model(images));
}

TEST(Scheme, AttentionIsOneKernelInEveryModel) {
  for (const std::string& name : scheme_names())
    for (const bool qk_reparam : {false, true}) {
      if (qk_reparam && name != "ofq") continue;
      if (name == "minmax") continue;  // ranges follow the values of every step
      VitConfig v = small_deit(false);
      v.qk_reparam = qk_reparam;
      VisionTransformer vit(v, 1);
      const Scheme scheme = load_scheme(name, {.qk_reparam = qk_reparam});
      EXPECT_TRUE(kept_by_step(vit, scheme).contains("attention_probs")) << name << qk_reparam;
      SwinConfig s;  // shifted windows, and a bias for each
      s.image_size = 16, s.patch = 2, s.width = 24, s.window = 2, s.classes = 10;
      s.depths = {2, 2}, s.heads = {3, 6}, s.qk_reparam = qk_reparam;
      SwinTransformer swin(s, 1);
      EXPECT_TRUE(kept_by_step(swin, scheme).contains("attention_probs")) << name << qk_reparam;
    }
  Scheme headwise = load_scheme("vvtq");
  for (Rule& r : headwise.rules)
    if (r.slot == ".*\\.attn\\.probs") r.settings["heads"] = "3", r.settings["axis"] = "-3";
  VisionTransformer vit(small_deit(false), 1);
  EXPECT_TRUE(kept_by_step(vit, headwise).contains("attention_probs"));
}

TEST(Scheme, GoldenCheckpointNamesOfVvtq) {
  LOWBIT_GOLDEN_OR_SKIP(path, "vvtq/model_deit_w4a4.safetensors");
  const test::GoldenFile f(path);
  VisionTransformer model(small_deit(true), 1);
  install(model, load_scheme("vvtq"));
  std::set<std::string> expected, actual;
  for (const char* prefix : {"param.", "buffer."})
    for (const std::string& n : f.names_with_prefix(prefix))
      expected.insert(n.substr(std::string(prefix).size()));
  for (const auto& [name, t] : model.state()) actual.insert(name);
  EXPECT_EQ(actual, expected);
}

TEST(Scheme, BitMapAndSizeFollowTheOptions) {
  VisionTransformer model(small_deit(false), 1);
  const int64_t before = model_bits(model);
  install(model, load_scheme("lsq", {.wbits = 2, .abits = 3}));
  int64_t saved = 0, scales = 0;
  for (const LayerBits& l : bit_map(model)) {
    const bool edge = l.layer == "head" || l.layer == "patch_embed.proj";
    EXPECT_EQ(l.wbits, edge ? 8 : 2) << l.layer;
    EXPECT_EQ(l.abits, edge ? 8 : 3) << l.layer;
    saved += (32 - l.wbits) * l.weights;
  }
  for (const auto& [name, q] : quantizers(model)) scales += 32 * q->stored_values();
  EXPECT_EQ(scales, 32 * int64_t(quantizers(model).size()));
  EXPECT_EQ(bit_map(model).size(), 2u * 4 + 2);
  EXPECT_EQ(model_bits(model), before - saved + scales);
}

TEST(Scheme, BitMapKnowsTheInputOfEveryLayerAndWhatStaysFloat) {
  VitConfig c = small_deit(true);
  c.distilled = true;
  for (const std::string& name : scheme_names()) {
    VisionTransformer model(c, 1);
    const Report r = install(model, load_scheme(name, {.wbits = 3, .abits = 3, .edge_bits = 3}));
    for (const LayerBits& l : bit_map(model)) {
      EXPECT_EQ(l.wbits, 3) << name << ' ' << l.layer;
      EXPECT_EQ(l.abits, 3) << name << ' ' << l.layer;
      EXPECT_GT(l.weights, 0) << name << ' ' << l.layer;
    }
    EXPECT_EQ(float_slots(model), r.left_float) << name;
    set_quant_state(model, QuantState::off, "test");
    EXPECT_EQ(float_slots(model).size(), model.slots().size()) << name;
  }
}

TEST(Scheme, FloatBitsLeaveSlotsEmpty) {
  VisionTransformer model(small_deit(false), 1);
  install(model, load_scheme("vvtq", {.wbits = 4, .abits = 32}));
  for (const LayerBits& l : bit_map(model)) {
    const bool edge = l.layer == "head" || l.layer == "patch_embed.proj";
    EXPECT_EQ(l.abits, edge ? 8 : 32) << l.layer;
  }
}

TEST(Scheme, LaterRulesWinAndMayInherit) {
  const std::string text = R"(
# everything in eight bits
[.*\.attn\.(q|k)]
quantizer = lsq
bits = 8
init = mse
[.*\.attn\.k]
inherit = yes
bits = ${abits}
[blocks\.1\.attn\.q]
quantizer = none
[nothing\.like\.this]
quantizer = lsq
)";
  VisionTransformer model(small_deit(false), 1);
  const Scheme s = parse_scheme(text, "mine", {.abits = 5});
  EXPECT_EQ(parse_scheme(s.text(), "again").text(), s.text());
  const Report r = install(model, s);
  EXPECT_EQ(r.installed, (std::vector<std::string>{"blocks.0.attn.q", "blocks.0.attn.k", "blocks.1.attn.k"}));
  EXPECT_EQ(r.unused_rules, std::vector<std::string>{R"(nothing\.like\.this)"});
  const auto all = quantizers(model);
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(all[0].second->bits(), 8);
  EXPECT_EQ(all[1].second->bits(), 5);
  EXPECT_EQ(dynamic_cast<LsqQuantizer*>(all[1].second)->config().init, ScaleInit::mse);
  EXPECT_EQ(all[1].second->label(), "blocks.0.attn.k");
}

TEST(Scheme, MistakesAreUsageErrorsWithTheirPlace) {
  const auto text_of = [](const std::function<void()>& f) -> std::string {
    try {
      f();
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::usage);
      return e.what();
    }
    return "nothing was thrown";
  };
  EXPECT_EQ(text_of([] { (void)parse_scheme("[a]\nbitz = 4", "mine"); }),
            "scheme mine, line 2: unknown key bitz");
  EXPECT_EQ(text_of([] { (void)parse_scheme("bits = 4", "mine"); }),
            "scheme mine, line 1: a key must follow a [slot] line (got bits = 4)");
  EXPECT_EQ(text_of([] { (void)parse_scheme("[a]\nbits = ${w}", "mine"); }),
            "scheme mine, line 2: unknown variable ${w}");
  EXPECT_EQ(text_of([] { (void)parse_scheme("[(]\n", "mine"); }),
            "scheme mine, line 1: not a regular expression: (");
  EXPECT_EQ(text_of([] { (void)load_scheme("lsq", {.wbits = 9}); }),
            "scheme: bits must lie in [1, 8], or be 32 for float (got 9)");
  EXPECT_THAT(text_of([] { (void)load_scheme("lsqq"); }), HasSubstr("known: lsq, lsq+, minmax, ofq, vvtq"));
  VisionTransformer model(small_deit(false), 1);
  EXPECT_EQ(text_of([&] { install(model, load_scheme("lsq", {.wbits = 1})); }),
            "scheme: blocks.0.attn.qkv.weight: bits must lie in [2, 8], or be 32 for float (got 1)");
  EXPECT_EQ(
      text_of([&] { install(model, parse_scheme("[head_in]\nquantizer = lsq\nsigned = maybe", "mine")); }),
      "scheme: head_in: signed must be yes or no (got maybe)");
}

TEST(Scheme, FilesAreReadLikeBuiltIns) {
  const test::TempDir dir;
  test::write_file(dir / "mine.scheme", "[head_in]\nquantizer = minmax\nbits = 6\nsymmetric = no\n");
  VisionTransformer model(small_deit(false), 1);
  EXPECT_EQ(install(model, load_scheme(dir / "mine.scheme")).installed, std::vector<std::string>{"head_in"});
  EXPECT_TRUE(model.state().count("head_in_quant.scale"));
}

TEST(MinMax, CalibratesOverBatchesThenStaysFixed) {
  MinMaxQuantizer q({.bits = 8, .is_signed = false, .symmetric = false});
  q.set_quant_state(QuantState::observe, "calibration");
  const float a[] = {-0.5f, 0.2f}, b[] = {0.1f, 1.5f};
  EXPECT_TRUE(equal_bits(q.apply(Variable(Tensor::from(a, {2}))).data(), Tensor::from(a, {2})));
  (void)q.apply(Variable(Tensor::from(b, {2})));
  q.set_quant_state(QuantState::fixed, "calibrated");
  EXPECT_FLOAT_EQ(q.scale().item<float>(), 2.f / 255);
  const float x[] = {-0.5f, 0.f, 0.3f, 1.4f, 7.f};
  const Variable in(Tensor::from(x, {5}), true);
  const Variable y = q.apply(in);
  ASSERT_TRUE(y.coded());
  const auto v = y.data().to_vector<float>();
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(v[size_t(i)], x[i], 1.f / 255) << i;
  EXPECT_EQ(v[1], 0.f);  // zero stays exact
  EXPECT_NEAR(v[4], 1.5, 1.f / 255);
  y.backward(Tensor::full({5}, 2));
  EXPECT_EQ(in.grad().to_vector<float>(), (std::vector<float>{2, 2, 2, 2, 0}));
}

TEST(MinMax, ChannelScalesBelongToTheRowsOfAWeight) {
  MinMaxQuantizer q(
      {.bits = 4, .is_weight = true, .granularity = Granularity::channel, .axis = -2, .groups = 3});
  q.set_quant_state(QuantState::fixed, "test");
  const Tensor w = test::fill("w", {3, 50}, 0, 1);
  const Variable y = q.apply(Variable(w));
  ASSERT_TRUE(y.coded());
  EXPECT_EQ(y.coded()->codes.dtype(), DType::i8);
  EXPECT_EQ(y.coded()->scale_axis, -2);
  for (int64_t r = 0; r < 3; ++r) {
    float top = 0, worst = 0;
    const auto x = w.select(0, r).to_vector<float>(), v = y.data().select(0, r).to_vector<float>();
    for (size_t i = 0; i < x.size(); ++i) {
      top = std::max(top, std::fabs(x[i]));
      worst = std::max(worst, std::fabs(x[i] - v[i]));
    }
    EXPECT_FLOAT_EQ(q.scale().to_vector<float>()[size_t(r)], top / 7);
    EXPECT_LE(worst, top / 7 * 0.5001f);
  }
}

TEST(MinMax, UnusableRangesNameTheQuantizer) {
  MinMaxQuantizer q({.bits = 4});
  q.set_label("head_in");
  q.set_quant_state(QuantState::observe, "test");
  (void)q.apply(Variable(Tensor::full({2}, INFINITY)));
  EXPECT_THROW(
      {
        try {
          q.set_quant_state(QuantState::fixed, "test");
        } catch (const Error& e) {
          EXPECT_THAT(e.what(), HasSubstr("head_in: the observed range must be finite"));
          throw;
        }
      },
      Error);
}

}  // namespace
}  // namespace lowbit
