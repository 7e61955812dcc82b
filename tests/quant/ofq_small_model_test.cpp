// Small networks of OFQ against the published code, forward and every gradient; names and shapes of the full
// ones.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "autograd/core/node.h"
#include "nn/loss/distillation.h"
#include "nn/models/factory.h"
#include "nn/models/swin.h"
#include "nn/models/vit.h"
#include "tests/support/ofq.h"

namespace lowbit::test {
namespace {

/// One case of a file: the scales of the first forward, then logits, loss and gradients at the file's state.
void check_small(ImageModel& model, const GoldenFile& g, const std::string& name, const Json& settings) {
  SchemeOptions o = bits_of(settings);
  o.qk_reparam = settings.at("qkr");
  Scheme scheme = load_scheme("ofq", o);
  scheme.rules.push_back(
      {R"((patch_embed|features\.0)\..*)", {{"quantizer", "none"}}});  // float in these files
  install(model, scheme);
  placed(model);
  const std::map<std::string, Tensor> theirs = part_of(g, name + "/p/");
  std::map<std::string, Tensor> state = model.state();
  std::erase_if(state, [](const auto& s) { return s.first.ends_with("relative_position_index"); });
  ASSERT_EQ(state.size(), theirs.size());
  for (auto& [n, t] : state)
    if (!n.ends_with(".s")) t.copy_from(theirs.at(n));
  const auto part = [&](const char* p) { return g.tensor(name + "/" + p); };
  model.eval();
  {
    const NoGrad off;
    (void)model(Variable(part("init/x")));
  }
  for (auto& [n, t] : state) {
    if (!n.ends_with(".s")) continue;
    expect_close(t, theirs.at(n), 1e-3, 0, "initial " + n);
    t.copy_from(theirs.at(n));
  }
  const Variable x(part("in/x"), true);
  expect_close_to_largest(model(x).data(), part("out/eval_logits"), 1e-4, "eval_logits");
  model.train();
  const auto heads = model.heads(x);
  if (heads.dist.defined()) {
    expect_close_to_largest(heads.cls.data(), part("out/cls"), 1e-4, "cls");
    expect_close_to_largest(heads.dist.data(), part("out/dist"), 1e-4, "dist");
  } else {
    expect_close_to_largest(heads.cls.data(), part("out/logits"), 1e-4, "logits");
  }
  const Variable loss =
      distillation_loss(heads.cls, heads.dist, Variable(part("in/teacher_logits")), part("in/label"));
  expect_close(loss.data(), part("out/loss"), 1e-5, 0, "loss");
  loss.backward();
  expect_close_to_largest(x.grad(), part("g_in/x"), 1e-4, "g_in/x");
  std::map<std::string, Tensor> ours;
  for (const NamedParameter& p : model.parameters()) ours[p.name] = p.parameter->var.grad();
  for (const auto& [n, t] : part_of(g, name + "/g_p/")) {
    ASSERT_TRUE(ours.count(n)) << n;
    if (n.ends_with("move_k_aft.bias") || n.ends_with("move_qkx_aft.bias"))  // zero but for rounding
      expect_close(ours.at(n), t, 0, 1e-6, n);
    else
      expect_close_to_largest(ours.at(n), t, n.ends_with(".s") ? 1e-3 : 1e-4, n);
  }
}

TEST(OfqGolden, SmallDeit) {
  LOWBIT_GOLDEN_OR_SKIP(path, "ofq/model_small_deit.safetensors");
  const GoldenFile g(path);
  for (const auto& [name, settings] : g.cases()) {
    if (settings.at("wbits").is_null()) continue;  // float: tests/train
    SCOPED_TRACE(name);
    VitConfig c;
    c.image_size = settings.at("img"), c.patch = settings.at("patch_size"), c.width = settings.at("C");
    c.depth = settings.at("depth"), c.heads = settings.at("H"), c.classes = settings.at("ncls");
    c.distilled = true, c.qk_reparam = settings.at("qkr");
    VisionTransformer model(c, 0);
    check_small(model, g, name, settings);
  }
}

TEST(OfqGolden, SmallSwin) {
  LOWBIT_GOLDEN_OR_SKIP(path, "ofq/model_small_swin.safetensors");
  const GoldenFile g(path);
  for (const auto& [name, settings] : g.cases()) {
    if (settings.at("wbits").is_null()) continue;  // float: tests/nn
    SCOPED_TRACE(name);
    SwinConfig c;
    c.image_size = g.tensor(name + "/in/x").size(2), c.patch = settings.at("patch_size");
    c.width = settings.at("C"), c.window = settings.at("window"), c.classes = settings.at("ncls");
    c.depths = settings.at("depths").get<std::vector<int64_t>>();
    c.heads = settings.at("H").get<std::vector<int64_t>>();
    c.layout = SwinLayout::ofq, c.qk_reparam = settings.at("qkr");
    SwinTransformer model(c, 0);
    check_small(model, g, name, settings);
  }
}

/// Names and shapes of a published model, the shift of q, k and v in three parts.
void check_names(const Json& list, const Json& summary, const std::string& model_name,
                 const std::string& form) {
  std::map<std::string, std::string> expected, actual;
  for (const Json& row : list) {
    std::string name = row[0];
    if (const size_t at = name.find("move_qkv_b4"); at != std::string::npos) {
      for (const char part : {'q', 'k', 'v'})
        expected[name.substr(0, at) + "move_" + part + "_b4.bias"] =
            Shape{row[1][0].get<int64_t>() / 3}.str();
      continue;
    }
    std::string text;
    for (const Json& d : row[1]) text += (text.empty() ? "" : ", ") + std::to_string(d.get<int64_t>());
    expected[name] = "[" + text + "]";
  }
  SchemeOptions o;
  o.qk_reparam = form == "qkr";
  const auto model = plan_model(model_name, {.qk_reparam = o.qk_reparam}).build(0);
  if (form != "float") install(*model, load_scheme("ofq", o));
  for (const auto& [name, t] : model->state()) actual[name] = t.shape().str();
  EXPECT_EQ(actual, expected);
  int64_t trained = 0, decayed = 0, scales = 0;
  for (const NamedParameter& p : model->parameters()) {
    const int64_t n = p.parameter->var.numel();
    trained += n, decayed += p.parameter->decay ? n : 0, scales += p.name.ends_with(".s") ? n : 0;
    EXPECT_TRUE(p.parameter->var.requires_grad()) << p.name;
  }
  EXPECT_EQ(trained, summary.at("trained"));
  EXPECT_EQ(decayed, summary.at("decayed"));
  EXPECT_EQ(scales, summary.at("scales"));
}

TEST(OfqGolden, CheckpointNames) {
  LOWBIT_GOLDEN_OR_SKIP(path, "ofq/parameters.json");
  std::ifstream f(path);
  const Json file = Json::parse(f);
  static const std::map<std::string, std::string> kNames = {{"deit_t", "deit_tiny_distilled_patch16_224"},
                                                            {"deit_s", "deit_small_distilled_patch16_224"},
                                                            {"swin_t", "swin_t_quant"}};
  for (const auto& [key, list] : file.at("models").items()) {  // "deit_t/qkr"
    SCOPED_TRACE(key);
    const size_t slash = key.find('/');
    const std::string form = key.substr(slash + 1);
    check_names(list, file.at("summary").at(key),
                key == "swin_t/float" ? "swin_t" : kNames.at(key.substr(0, slash)), form);
  }
}

TEST(Ofq, BothLayoutsOfSwinAreQuantizedAlike) {
  SwinConfig c;
  c.image_size = 32, c.width = 12, c.window = 4, c.depths = {2, 2}, c.heads = {2, 4}, c.classes = 10;
  c.qk_reparam = true;
  std::vector<size_t> installed;
  for (const SwinLayout layout : {SwinLayout::published, SwinLayout::torchvision, SwinLayout::ofq}) {
    c.layout = layout;
    SwinTransformer model(c, 0);
    installed.push_back(install(model, load_scheme("ofq", {.qk_reparam = true})).installed.size());
    const Variable y = model(Variable(fill("x", {2, 3, 32, 32}, 0, 1)));
    y.backward(Tensor::full(y.shape(), 1));
    for (const auto& [name, q] : quantizers(model)) EXPECT_TRUE(q->initialised()) << name;
  }
  // Image, 4 blocks of 12 (in, qk, qkx, v, v.weight, probs, context, proj, mlp: 2 and 2), merging, head.
  EXPECT_THAT(installed, ::testing::Each(2 + 4 * 12 + 2 + 2));
}

TEST(Ofq, ScalesPerTokenNeedTheSameTokensInEveryUse) {
  const auto model = plan_model("sret_t", {}).build(0);
  try {
    install(*model, load_scheme("ofq"));
    ADD_FAILURE() << "SReT has no fixed number of tokens in a group";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::usage);
    EXPECT_THAT(e.what(),
                ::testing::HasSubstr("transformers.0.blocks.0.attn.q is used with groups of different"));
  }
}

}  // namespace
}  // namespace lowbit::test
