// Quantized pieces of DeiT and whole small networks against the published code: outputs and every gradient.

#include <gtest/gtest.h>

#include <cmath>
#include <regex>

#include "autograd/core/node.h"
#include "autograd/ops/broadcast.h"
#include "autograd/ops/cross_entropy.h"
#include "autograd/ops/pointwise.h"
#include "autograd/ops/shape.h"
#include "nn/models/vit.h"
#include "quant/ops/bin_regularizer.h"
#include "quant/quantizer/lsq_quantizer.h"
#include "quant/scheme/scheme.h"
#include "tests/support/golden.h"
#include "tests/support/model.h"

namespace lowbit {
namespace {

using namespace test;

std::unique_ptr<VisionTransformer> quantized(const VitConfig& c, const SchemeOptions& o) {
  auto model = std::make_unique<VisionTransformer>(c, 0);
  Scheme scheme = load_scheme("vvtq", o);
  for (Rule& r : scheme.rules) r.settings["published_scale"] = "yes";  // to the last bit
  install(*model, scheme);
  return model;
}

/// Copies `<prefix><name>` of the file into the model's `<at><name>`; scales count as initialised.
void load_parameters(VisionTransformer& model, const GoldenFile& g, const std::string& prefix,
                     const std::string& at) {
  std::map<std::string, Tensor> state = model.state();
  size_t found = 0;
  for (auto& [name, t] : state) {
    if (name.ends_with(".init_state")) t.fill(1);
    if (!name.starts_with(at) || !g.has(prefix + name.substr(at.size()))) continue;
    t.copy_from(g.tensor(prefix + name.substr(at.size())).reshape(t.shape()));
    ++found;
  }
  // A module that passes its input on (nbits < 0) keeps only that number; ours is an empty slot.
  size_t wanted = 0;
  for (const std::string& name : g.names_with_prefix(prefix))
    wanted += !(name.ends_with(".nbits") && g.tensor(name).item<float>() < 0);
  EXPECT_EQ(found, wanted) << prefix << ": every parameter of the file has its place";
}

/// |ours − theirs| ≤ rtol · largest + atol.
void expect_near_largest(const Tensor& ours, const Tensor& theirs, double rtol, double atol,
                         const std::string& what) {
  double largest = 0;
  for (float v : theirs.to_vector<float>()) largest = std::max(largest, std::fabs(double(v)));
  expect_close(ours, theirs, 0, rtol * largest + atol, what);
}

/// Scale gradients are sums with cancellation: relative to the largest.
void check_gradients(VisionTransformer& model, const GoldenFile& g, const std::string& prefix,
                     const std::string& at, double rtol, double atol) {
  size_t found = 0;
  for (const NamedParameter& p : model.parameters()) {
    if (!p.name.starts_with(at)) continue;
    const std::string key = prefix + p.name.substr(at.size());
    if (!g.has(key)) continue;
    ++found;
    const Tensor grad = p.parameter->var.grad();
    ASSERT_TRUE(grad.defined()) << p.name;
    const bool scale = key.ends_with(".alpha") || key.ends_with(".beta");
    if (scale)
      expect_close_to_largest(grad, g.tensor(key), 1e-3, key);
    else
      expect_close(grad, g.tensor(key), rtol, atol, key);
  }
  EXPECT_EQ(found, g.names_with_prefix(prefix).size())
      << prefix << ": every gradient of the file is compared";
}

struct Piece {
  std::string at;  ///< where the case's names live in the model
  std::function<Variable(VisionTransformer&, const Variable&)> run;
};

Slot& slot_of(VisionTransformer& model, const std::string& name) {
  for (NamedSlot& s : model.slots())
    if (s.name == name) return *s.slot;
  throw std::runtime_error("no slot " + name);
}

std::map<std::string, Piece> pieces() {
  return {{"mlp",
           {"blocks.0.mlp.",
            [](auto& m, const Variable& x) { return dynamic_cast<Mlp&>(m.at("blocks.0.mlp"))(x); }}},
          {"attn",
           {"blocks.0.attn.",
            [](auto& m, const Variable& x) { return dynamic_cast<Attention&>(m.at("blocks.0.attn"))(x); }}},
          {"block",
           {"blocks.0.",
            [](auto& m, const Variable& x) { return dynamic_cast<VitBlock&>(m.at("blocks.0"))(x); }}},
          {"patch_embed", {"patch_embed.", [](auto& m, const Variable& x) {
                             return dynamic_cast<PatchEmbed&>(m.at("patch_embed"))(x);
                           }}}};
}

TEST(VvtqGolden, DeitLayers) {
  LOWBIT_GOLDEN_OR_SKIP(path, "vvtq/layers_deit.safetensors");
  const GoldenFile g(path);
  const std::regex form(R"((\w+)(?:\.w(\d+)a(\d+))?(\.offset)?)");
  for (const auto& [name, settings] : g.cases()) {
    SCOPED_TRACE(name);
    std::smatch m;
    ASSERT_TRUE(std::regex_match(name, m, form));
    SchemeOptions o;
    if (m[2].matched) o.wbits = std::stoi(m[2]), o.abits = std::stoi(m[3]);
    o.offset = m[4].matched;
    VitConfig c;
    c.image_size = 16, c.patch = 8, c.width = 24, c.depth = 1, c.heads = 3, c.classes = 20,
    c.split_qkv = true;
    const Variable x(g.tensor(name + ".x0"), true);
    if (m[1] == "linear")
      o.edge_bits = o.wbits;  // a quantizer and a linear layer: the classifier has that form
    const auto model = quantized(c, o);
    Variable y;
    if (m[1] == "linear") {
      load_parameters(*model, g, name + ".param.0.", "quant.");
      load_parameters(*model, g, name + ".param.1.", "head.");
      y = dynamic_cast<Linear&>(model->at("head"))(slot_of(*model, "head_in")(x));
    } else {
      const Piece p = pieces().at(m[1]);
      load_parameters(*model, g, name + ".param.", p.at);
      y = p.run(*model, x);
    }
    expect_close(y.data(), g.tensor(name + ".y"), g.rtol(), g.atol(), name + ".y");
    y.backward(g.tensor(name + ".upstream"));
    expect_close(x.grad(), g.tensor(name + ".grad_x0"), g.rtol(), g.atol(), name + ".grad_x0");
    if (m[1] == "linear") {
      check_gradients(*model, g, name + ".grad.0.", "quant.", g.rtol(), g.atol());
      check_gradients(*model, g, name + ".grad.1.", "head.", g.rtol(), g.atol());
    } else {
      check_gradients(*model, g, name + ".grad.", pieces().at(m[1]).at, g.rtol(), g.atol());
    }
  }
}

Variable parameter(VisionTransformer& model, const std::string& name) {
  for (const NamedParameter& p : model.parameters())
    if (p.name == name) return p.parameter->var;
  throw std::runtime_error("no parameter " + name);
}

/// Σ over all quantized weights; convolutions use another gradient factor there (vvtq.md 14, item 5).
Variable regularizer(VisionTransformer& model) {
  Variable sum;
  for (const auto& [slot, quantizer] : quantizers(model)) {
    if (!slot.ends_with(".weight")) continue;
    const std::string module = slot.substr(0, slot.rfind('.'));
    const auto& q = dynamic_cast<LsqQuantizer&>(*quantizer);
    const Variable w = parameter(model, module + ".weight");
    BinRegularizerSettings s;
    s.levels = Levels::of(q.bits(), true);
    s.slot = q.bits() - LsqQuantizer::kMinBits;
    s.grad_scale =
        w.ndim() == 4 ? 1 / std::sqrt(double(w.numel()) * s.levels.hi) : q.gradient_factors(w.data())[0];
    const Variable r = bin_regularizer(w, parameter(model, module + ".alpha"), s);
    sum = sum.defined() ? add(sum, r) : r;
  }
  return sum;
}

void check_model(const std::string& file) {
  LOWBIT_GOLDEN_OR_SKIP(path, file);
  const GoldenFile g(path);
  const nlohmann::json config = g.meta_json("config");
  VitConfig c;
  c.image_size = config.at("img_size"), c.patch = config.at("patch_size"), c.width = config.at("embed_dim");
  c.depth = config.at("depth"), c.heads = config.at("num_heads"), c.classes = config.at("num_classes");
  c.split_qkv = true;
  SchemeOptions o;
  o.wbits = o.abits = int(g.tensor("param.blocks.0.mlp.fc1.nbits").item<float>());
  const auto model = quantized(c, o);
  load_parameters(*model, g, "param.", "");
  std::vector<std::pair<std::string, std::shared_ptr<Probe>>> outputs;
  for (int64_t i = 0; i < c.depth; ++i)
    outputs.emplace_back("blocks." + std::to_string(i),
                         probe(*model, "blocks." + std::to_string(i) + ".mlp_sum"));
  outputs.emplace_back("norm", probe(*model, "norm.out"));
  const Variable logits = (*model)(Variable(g.tensor("x")));
  expect_close_to_largest(logits.data(), g.tensor("logits"), g.rtol(), "logits");
  for (const auto& [name, output] : outputs)
    for (const std::string& key : g.names_with_prefix("act."))
      if (key.size() > 7 && key.substr(7) == name)
        expect_close_to_largest(output->last.data(), g.tensor(key), g.rtol(), key);
  const Variable kd = soft_cross_entropy(logits, g.tensor("target"));
  const Variable obr = scale(regularizer(*model), 0.005);
  expect_close(kd.data(), g.tensor("loss_kd"), g.rtol(), 0, "loss_kd");
  expect_close(obr.data(), g.tensor("loss_obr"), g.rtol(), 0, "loss_obr");
  add(kd, reshape(obr, {1})).backward();
  for (const NamedParameter& p : model->parameters()) {
    if (!g.has("grad." + p.name)) continue;
    ASSERT_TRUE(p.parameter->var.grad().defined()) << p.name;
    expect_near_largest(p.parameter->var.grad(), g.tensor("grad." + p.name), g.rtol(), g.atol(),
                        "grad." + p.name);
  }
}

TEST(VvtqGolden, SmallDeitW4A4) { check_model("vvtq/model_deit_w4a4.safetensors"); }
TEST(VvtqGolden, SmallDeitW2A2) { check_model("vvtq/model_deit_w2a2.safetensors"); }

TEST(VvtqGolden, BinRegularizer) {
  LOWBIT_GOLDEN_OR_SKIP(path, "vvtq/obr.safetensors");
  const GoldenFile g(path);
  for (const auto& [name, settings] : g.cases()) {
    SCOPED_TRACE(name);
    const Variable w(g.tensor(name + ".weight"), true), alpha(g.tensor(name + ".alpha"), true);
    const int bits = settings.at("nbits");
    BinRegularizerSettings s;
    s.levels = Levels::of(bits, true), s.slot = bits - 2;
    double l1 = 0;
    for (float v : w.data().to_vector<float>()) l1 += std::fabs(v);
    const bool conv = settings.at("kind") == "conv";
    s.grad_scale = float(1 / std::sqrt((conv ? double(w.numel()) : l1) * s.levels.hi));
    const Variable r = bin_regularizer(w, alpha, s);
    expect_close(r.data(), g.tensor(name + ".loss"), g.rtol(), g.atol(), name + ".loss");
    r.backward();
    expect_close(w.grad(), g.tensor(name + ".grad_weight"), g.rtol(), g.atol(), name + ".grad_weight");
    expect_near_largest(alpha.grad(), g.tensor(name + ".grad_alpha"), 1e-3, g.atol(), name + ".grad_alpha");
  }
}

}  // namespace
}  // namespace lowbit
