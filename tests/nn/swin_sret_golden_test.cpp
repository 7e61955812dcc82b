// Float Swin and SReT models and their parts against the published code: logits, features and every gradient.

#include <gtest/gtest.h>

#include <cmath>

#include "autograd/core/node.h"
#include "autograd/ops/broadcast.h"
#include "autograd/ops/cross_entropy.h"
#include "autograd/ops/softmax.h"
#include "nn/models/sret.h"
#include "nn/models/swin.h"
#include "tests/support/golden.h"
#include "tests/support/model.h"

namespace lowbit {
namespace {

using namespace test;

Tensor moment(const Tensor& x, int power) {  // root mean square or mean per image
  Tensor r = Tensor::empty({x.size(0)});
  for (int64_t b = 0; b < x.size(0); ++b) {
    double sum = 0;
    const std::vector<float> v = x.select(0, b).to_vector<float>();
    for (float e : v) sum += power == 2 ? double(e) * e : e;
    sum /= double(v.size());
    r.data<float>()[b] = float(power == 2 ? std::sqrt(sum) : sum);
  }
  return r;
}

/// Copies `<prefix><name>` of the file into the module, every name of both.
void load_all(Module& m, const GoldenFile& g, const std::string& prefix) {
  std::map<std::string, Tensor> s;
  for (const std::string& name : g.names_with_prefix(prefix)) s[name.substr(prefix.size())] = g.tensor(name);
  placed(m).load(s);
}

void check_gradients(Module& m, const GoldenFile& g, const std::string& prefix, double rtol, double atol) {
  size_t compared = 0;
  for (const NamedParameter& p : m.parameters()) {
    if (!g.has(prefix + p.name)) continue;
    const Tensor expected = g.tensor(prefix + p.name);
    double largest = 0;
    for (float v : expected.to_vector<float>()) largest = std::max(largest, std::fabs(double(v)));
    expect_close(p.parameter->var.grad(), expected, 0, rtol * largest + atol, prefix + p.name);
    ++compared;
  }
  EXPECT_EQ(compared, g.names_with_prefix(prefix).size()) << "every gradient of the file is compared";
}

/// A full-size float model: names, size, logits and the input of the head.
void check_vvtq(ImageModel& model, const GoldenFile& g) {
  std::set<std::string> ours, theirs;
  int64_t count = 0;
  for (const NamedParameter& p : model.parameters()) ours.insert(p.name), count += p.parameter->var.numel();
  for (const auto& name : g.meta_json("names")) theirs.insert(name.get<std::string>());
  EXPECT_EQ(ours, theirs);
  EXPECT_EQ(count, std::stoll(g.meta("params")));
  fill_state(placed(model));
  model.eval();
  NoGrad off;
  const auto norm = probe(model, "head_in");
  const Tensor logits = model(Variable(fill("input", {2, 3, 224, 224}, 0, 2))).data();
  expect_close_to_largest(norm->last.data(), g.tensor("norm_out"), g.rtol(), "norm_out");
  expect_close_to_largest(logits, g.tensor("logits"), g.rtol(), "logits");
}

TEST(SwinGolden, VvtqSwinTiny) {
  LOWBIT_GOLDEN_OR_SKIP(path, "vvtq/full_swin_t_fp.safetensors");
  SwinConfig c = swin_configs()[0];
  c.split_qkv = true;
  SwinTransformer swin(c, 0);
  check_vvtq(swin, GoldenFile(path));
}

TEST(SretGolden, VvtqSretTiny) {
  LOWBIT_GOLDEN_OR_SKIP(path, "vvtq/full_sret_t_fp.safetensors");
  const GoldenFile g(path);
  SretTransformer sret(sret_configs()[0], 0);
  sret.order = [&g](int64_t k, int64_t) { return g.tensor("perm" + std::to_string(k)).cast(DType::i64); };
  check_vvtq(sret, g);
}

/// Runs a block or a patch merging by its name.
Variable run_module(SwinTransformer& swin, const std::string& name, const Variable& x) {
  Module& m = swin.at(name);
  if (auto* block = dynamic_cast<SwinBlock*>(&m)) return (*block)(x);
  return dynamic_cast<PatchMerging&>(m)(x);
}

TEST(SwinGolden, OfqSwinTiny) {
  LOWBIT_GOLDEN_OR_SKIP(path, "ofq/full_swin_t_float.safetensors");
  const GoldenFile g(path);
  for (const auto& [name, settings] : g.cases()) {
    SwinConfig c = swin_configs()[0];
    c.layout = SwinLayout::torchvision;
    SwinTransformer swin(c, 0);
    fill_state(placed(swin));
    swin.eval();
    NoGrad off;
    std::map<std::string, std::shared_ptr<Probe>> outputs;
    for (const auto& [module, local] : settings.at("local").items())
      outputs[module] = probe(
          swin, module + (std::count(module.begin(), module.end(), '.') > 1 ? ".mlp_sum" : ".reduction.out"));
    const Variable logits = swin(Variable(fill_expression(settings.at("input"))));
    expect_close_to_largest(logits.data(), g.tensor(name + "/out/eval_logits"), 1e-4, name + " logits");
    for (const auto& [module, output] : outputs) {
      const std::string at = name + "/layer/" + module;
      const Tensor y = output->last.data();  // [B, H, W, C]
      const Tensor first = g.tensor(at + "/first_tokens");
      expect_close_to_largest(
          y.select(0, 0).select(0, 0).slice(0, 0, first.size(1)).slice(1, 0, first.size(2)), first, 1e-4, at);
      expect_close_to_largest(moment(y, 2), g.tensor(at + "/rms_per_image"), 1e-4, at + " rms");
      expect_close(moment(y, 1), g.tensor(at + "/mean_per_image"), 0, 1e-5, at + " mean");
    }
    for (const auto& [module, local] : settings.at("local").items()) {
      const std::string at = name + "/local/" + module;
      const Tensor y = run_module(swin, module, Variable(fill_expression(local.at("input")))).data();
      const Tensor first = g.tensor(at + "/first_tokens");
      expect_close_to_largest(
          y.packed().reshape({y.numel() / y.size(-1), y.size(-1)}).slice(0, 0, first.size(0)), first, 1e-4,
          at);
      const double norm = moment(y.unsqueeze(0), 2).item<float>() * std::sqrt(double(y.numel()));
      expect_close_to_largest(Tensor::scalar(float(norm)), g.tensor(at + "/norm"), 1e-4, at + "/norm");
    }
  }
}

TEST(SwinGolden, OfqWindowAttention) {
  LOWBIT_GOLDEN_OR_SKIP(path, "ofq/swin_attention.safetensors");
  const GoldenFile g(path);
  int compared = 0;
  for (const auto& [name, settings] : g.cases()) {
    if (settings.at("module") != "ShiftedWindowAttention") continue;
    SCOPED_TRACE(name);
    const Variable x(g.tensor(name + "/in/x"), true);
    WindowAttention::Options o;
    o.attention.width = x.size(3), o.attention.heads = settings.at("heads");
    o.height = x.size(1), o.width = x.size(2), o.window = settings.at("window"),
    o.shift = settings.at("shift");
    o.flat_index = true;
    Generator init(0);
    WindowAttention attention(o, init);
    load_all(attention, g, name + "/p/");
    const Variable y = attention(x);
    expect_close(y.data(), g.tensor(name + "/out/y"), g.rtol(), g.atol(), name + "/out/y");
    y.backward(g.tensor(name + "/g_out"));
    expect_close(x.grad(), g.tensor(name + "/g_in/x"), g.rtol(), g.atol(), name + "/g_in/x");
    check_gradients(attention, g, name + "/g_p/", g.rtol(), g.atol());
    ++compared;
  }
  EXPECT_GE(compared, 4);
}

TEST(SwinGolden, OfqSmallModel) {
  LOWBIT_GOLDEN_OR_SKIP(path, "ofq/model_small_swin.safetensors");
  const GoldenFile g(path);
  int compared = 0;
  for (const auto& [name, s] : g.cases()) {
    if (!s.at("wbits").is_null()) continue;
    const Variable x(g.tensor(name + "/in/x"), true);
    SwinConfig c;
    c.image_size = x.size(2), c.patch = s.at("patch_size"), c.width = s.at("C"), c.window = s.at("window");
    c.depths = s.at("depths").get<std::vector<int64_t>>(), c.heads = s.at("H").get<std::vector<int64_t>>();
    c.classes = s.at("ncls"), c.layout = SwinLayout::torchvision;
    SwinTransformer swin(c, 0);
    load_all(swin, g, name + "/p/");
    const Variable logits = swin(x);
    expect_close_to_largest(logits.data(), g.tensor(name + "/out/logits"), 1e-4, name + " logits");
    const Variable loss =
        add(soft_cross_entropy(logits, softmax(Variable(g.tensor(name + "/in/teacher_logits"))).data()),
            cross_entropy(logits, g.tensor(name + "/in/label")));
    expect_close(loss.data(), g.tensor(name + "/out/loss"), 1e-5, 0, name + " loss");
    loss.backward();
    expect_close_to_largest(x.grad(), g.tensor(name + "/g_in/x"), 1e-4, name + "/g_in/x");
    check_gradients(swin, g, name + "/g_p/", 1e-4, 0);
    swin.eval();
    expect_close_to_largest(swin(x).data(), g.tensor(name + "/out/eval_logits"), 1e-4, name + " evaluation");
    ++compared;
  }
  EXPECT_GE(compared, 1);
}

}  // namespace
}  // namespace lowbit
