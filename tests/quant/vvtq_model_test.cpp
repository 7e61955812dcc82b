// Quantized pieces of DeiT and whole small networks against the published code: outputs and every gradient.

#include <gtest/gtest.h>

#include <cmath>
#include <regex>

#include "autograd/core/node.h"
#include "autograd/ops/broadcast.h"
#include "autograd/ops/cross_entropy.h"
#include "autograd/ops/pointwise.h"
#include "autograd/ops/shape.h"
#include "nn/models/sret.h"
#include "nn/models/swin.h"
#include "nn/models/vit.h"
#include "quant/ops/bin_regularizer.h"
#include "quant/quantizer/lsq_quantizer.h"
#include "quant/scheme/scheme.h"
#include "quant/weight_regularizer.h"
#include "tests/support/golden.h"
#include "tests/support/model.h"
#include "tests/support/vvtq.h"

namespace lowbit {
namespace {

using namespace test;

/// Copies `<prefix><name>` of the file into the model's `<at><name>`; scales count as initialised.
void load_parameters(ImageModel& model, const GoldenFile& g, const std::string& prefix,
                     const std::string& at) {
  std::map<std::string, Tensor> state = model.state();
  size_t found = 0;
  for (auto& [name, t] : state) {
    if (name.ends_with(".init_state")) t.fill(1);
    if (!name.starts_with(at) || !g.has(prefix + name.substr(at.size()))) continue;
    t.copy_from(g.tensor(prefix + name.substr(at.size())).reshape(t.shape()));
    ++found;
  }
  // A module that passes its input on (nbits < 0) keeps only that number; ours is an empty slot. So is the
  // one of Swin that is never called.
  size_t wanted = 0;
  const bool swin = dynamic_cast<SwinTransformer*>(&model) != nullptr;
  for (const std::string& name : g.names_with_prefix(prefix))
    wanted += !(name.ends_with(".nbits") && g.tensor(name).item<float>() < 0) &&
              !(swin && (at + name.substr(prefix.size())).starts_with("patch_embed.quant."));
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
void check_gradients(ImageModel& model, const GoldenFile& g, const std::string& prefix, const std::string& at,
                     double rtol, double atol) {
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

Slot& slot_of(ImageModel& model, const std::string& name) {
  for (NamedSlot& s : model.slots())
    if (s.name == name) return *s.slot;
  throw std::runtime_error("no slot " + name);
}

/// Runs whichever module stands at `path`; maps are flat in the files.
Variable run_module(ImageModel& model, const std::string& path, const Variable& x) {
  Module& m = model.at(path);
  const auto map = [&](auto& module) {
    const auto side = int64_t(std::lround(std::sqrt(double(x.size(1)))));
    return module(reshape(x, {x.size(0), side, side, -1}));
  };
  if (auto* p = dynamic_cast<WindowAttention*>(&m)) return map(*p);
  if (auto* p = dynamic_cast<SwinBlock*>(&m)) return map(*p);
  if (auto* p = dynamic_cast<PatchMerging*>(&m)) return map(*p);
  if (auto* p = dynamic_cast<SwinEmbed*>(&m)) return (*p)(x);
  if (auto* p = dynamic_cast<Mlp*>(&m)) return (*p)(x);
  if (auto* p = dynamic_cast<Attention*>(&m)) return (*p)(x);
  if (auto* p = dynamic_cast<VitBlock*>(&m)) return (*p)(x);
  return dynamic_cast<PatchEmbed&>(m)(x);
}

/// One case of a file: y and every gradient of the module at `path`, which `run` calls.
void check_piece(ImageModel& model, const GoldenFile& g, const std::string& name, const std::string& path,
                 const std::function<Variable(const Variable&)>& run) {
  const Variable x(g.tensor(name + ".x0"), true);
  load_parameters(model, g, name + ".param.", path + ".");
  const Variable y = run(x);
  const Tensor expected = g.tensor(name + ".y");
  expect_close(y.data().packed().reshape(expected.shape()), expected, g.rtol(), g.atol(), name + ".y");
  y.backward(g.tensor(name + ".upstream").reshape(y.shape()));
  expect_close(x.grad(), g.tensor(name + ".grad_x0"), g.rtol(), g.atol(), name + ".grad_x0");
  check_gradients(model, g, name + ".grad.", path + ".", g.rtol(), g.atol());
}

void check_piece(ImageModel& model, const GoldenFile& g, const std::string& name, const std::string& path) {
  check_piece(model, g, name, path, [&](const Variable& x) { return run_module(model, path, x); });
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
    if (m[1] != "linear") {
      const bool embed = m[1] == "patch_embed";
      check_piece(*quantized(c, o), g, name,
                  embed             ? "patch_embed"
                  : m[1] == "block" ? "blocks.0"
                                    : "blocks.0." + m[1].str());
      continue;
    }
    o.edge_bits = o.wbits;  // a quantizer and a linear layer: the classifier has that form
    const auto model = quantized(c, o);
    load_parameters(*model, g, name + ".param.0.", "quant.");
    load_parameters(*model, g, name + ".param.1.", "head.");
    const Variable x(g.tensor(name + ".x0"), true);
    const Variable y = dynamic_cast<Linear&>(model->at("head"))(slot_of(*model, "head_in")(x));
    expect_close(y.data(), g.tensor(name + ".y"), g.rtol(), g.atol(), name + ".y");
    y.backward(g.tensor(name + ".upstream"));
    expect_close(x.grad(), g.tensor(name + ".grad_x0"), g.rtol(), g.atol(), name + ".grad_x0");
    check_gradients(*model, g, name + ".grad.0.", "quant.", g.rtol(), g.atol());
    check_gradients(*model, g, name + ".grad.1.", "head.", g.rtol(), g.atol());
  }
}

TEST(VvtqGolden, SwinLayers) {
  LOWBIT_GOLDEN_OR_SKIP(path, "vvtq/layers_swin.safetensors");
  const GoldenFile g(path);
  const std::regex form(R"((window_attn|block\.shift(\d)|patch_merging|patch_embed)(?:\.w(\d+)a(\d+))?)");
  for (const auto& [name, settings] : g.cases()) {
    SCOPED_TRACE(name);
    std::smatch m;
    ASSERT_TRUE(std::regex_match(name, m, form));
    SchemeOptions o;
    if (m[3].matched) o.wbits = std::stoi(m[3]), o.abits = std::stoi(m[4]);
    SwinConfig c;
    c.image_size = m[1] == "window_attn" || m[1] == "patch_embed" ? 16 : 32;
    c.width = 16, c.window = 4, c.depths = {2, 1}, c.heads = {2, 2}, c.classes = 20, c.split_qkv = true;
    const auto model = quantized<SwinTransformer>(c, o);
    std::string at = "layers.0.blocks.0.attn";
    if (m[1] == "patch_merging") at = "layers.0.downsample";
    if (m[1] == "patch_embed") at = "patch_embed";
    if (m[2].matched) at = m[2] == "0" ? "layers.0.blocks.0" : "layers.0.blocks.1";
    if (g.has(name + ".const.attn_mask")) {
      EXPECT_TRUE(equal_bits(model->state().at(at + ".attn_mask"), g.tensor(name + ".const.attn_mask")));
    }
    check_piece(*model, g, name, at);
  }
}

Variable channel_last(const Variable& x) { return permute(x, {0, 2, 3, 1}); }
Variable channel_first(const Variable& x) { return permute(x, {0, 3, 1, 2}); }

/// Running statistics after `<case>.buffer_after.`
void check_statistics(ImageModel& model, const GoldenFile& g, const std::string& prefix,
                      const std::string& at) {
  const std::map<std::string, Tensor> state = model.state();
  for (const std::string& key : g.names_with_prefix(prefix))
    if (key.find(".running_") != std::string::npos)
      expect_close(state.at(at + key.substr(prefix.size())), g.tensor(key), 1e-5, 1e-6, key);
}

TEST(VvtqGolden, SretLayers) {
  LOWBIT_GOLDEN_OR_SKIP(path, "vvtq/layers_sret.safetensors");
  const GoldenFile g(path);
  const std::regex form(R"((attn|block|non_proj|stem|pool)(?:\.g4|\.rec)?(?:\.w(\d+)a(\d+))?)");
  for (const auto& [name, settings] : g.cases()) {
    SCOPED_TRACE(name);
    std::smatch m;
    ASSERT_TRUE(std::regex_match(name, m, form));
    SchemeOptions o;
    if (m[2].matched) o.wbits = std::stoi(m[2]), o.abits = std::stoi(m[3]);
    SretConfig c;
    c.image_size = 32, c.base = {8, 8}, c.heads = {2, 4}, c.blocks = {1, 1}, c.groups1 = {4, 1},
    c.groups2 = {2, 1};
    if (m[1] == "pool") c.base = {4, 4};
    const auto model = quantized<SretTransformer>(c, o);
    AttentionUse use{.groups = 4};
    if (settings.value("recursive", false)) use.groups = settings.at("groups2");
    if (g.has(name + ".perm0")) use.order = g.tensor(name + ".perm0").cast(DType::i64);
    const std::string block = "transformers.0.blocks.0";
    if (m[1] == "attn") {
      auto& attention = dynamic_cast<Attention&>(model->at(block + ".attn"));
      check_piece(*model, g, name, block + ".attn", [&](const Variable& x) { return attention(x, use); });
    } else if (m[1] == "block") {
      auto& module = dynamic_cast<SretBlock&>(model->at(block));
      check_piece(*model, g, name, block, [&](const Variable& x) { return module(x, use); });
    } else if (m[1] == "non_proj") {
      auto& module = dynamic_cast<NonlinearProjection&>(model->at("transformers.0.blocks.1"));
      check_piece(*model, g, name, "transformers.0.blocks.1", [&](const Variable& x) { return module(x); });
    } else if (m[1] == "pool") {
      auto& pool = dynamic_cast<SretPool&>(model->at("pools.0"));
      check_piece(*model, g, name, "pools.0",
                  [&](const Variable& x) { return channel_first(pool(channel_last(x))); });
    } else {
      auto& stem = dynamic_cast<SretStem&>(model->at("patch_embed"));
      load_parameters(*model, g, name + ".buffer.", "patch_embed.");
      // The statistics before are those behind the pass that initialised the scales.
      check_piece(*model, g, name, "patch_embed", [&](const Variable& x) { return channel_first(stem(x)); });
      check_statistics(*model, g, name + ".buffer_after.", "patch_embed.");
    }
  }
}

/// Every value that passes a slot.
struct Recorder final : Transform {
  std::vector<Tensor> all;
  Variable apply(const Variable& x) override {
    all.push_back(x.data());
    return x;
  }
};

void check_model(const std::string& file,
                 const std::function<std::unique_ptr<ImageModel>(const GoldenFile&)>& make) {
  LOWBIT_GOLDEN_OR_SKIP(path, file);
  const GoldenFile g(path);
  const auto model = make(g);
  load_parameters(*model, g, "param.", "");
  load_parameters(*model, g, "buffer.", "");
  std::map<std::string, std::shared_ptr<Recorder>> outputs;
  for (const std::string& key : g.names_with_prefix("act.")) {
    const std::string slot = output_slot(*model, key.substr(7));
    if (!slot.empty() && !outputs.contains(key.substr(7)))
      outputs[key.substr(7)] = probe<Recorder>(*model, slot);
  }
  EXPECT_GE(outputs.size(), 3U);
  const Variable logits = (*model)(Variable(g.tensor("x")));
  expect_close_to_largest(logits.data(), g.tensor("logits"), g.rtol(), "logits");
  std::map<std::string, size_t> calls;
  for (const std::string& key : g.names_with_prefix("act."))  // in call order
    if (const auto at = outputs.find(key.substr(7)); at != outputs.end()) {
      const Tensor expected = g.tensor(key), ours = at->second->all.at(calls[at->first]++);
      expect_close_to_largest(ours.packed().reshape(expected.shape()), expected, g.rtol(), key);
    }
  check_statistics(*model, g, "buffer_after.", "");
  const Variable kd = soft_cross_entropy(logits, g.tensor("target"));
  const Variable obr = scale(weight_regularizer(*model), 0.005);
  expect_close(kd.data(), g.tensor("loss_kd"), g.rtol(), 0, "loss_kd");
  expect_close(obr.data(), g.tensor("loss_obr"), g.rtol(), 0, "loss_obr");
  add(kd, reshape(obr, {1})).backward();
  size_t compared = 0;
  for (const NamedParameter& p : model->parameters()) {
    if (!g.has("grad." + p.name)) continue;
    ASSERT_TRUE(p.parameter->var.grad().defined()) << p.name;
    expect_near_largest(p.parameter->var.grad(), g.tensor("grad." + p.name), g.rtol(), g.atol(),
                        "grad." + p.name);
    ++compared;
  }
  EXPECT_EQ(compared, g.names_with_prefix("grad.").size()) << "every gradient of the file is compared";
  if (g.has("logits_eval")) {
    load_parameters(*model, g, "buffer.", "");
    model->eval();
    expect_close_to_largest((*model)(Variable(g.tensor("x"))).data(), g.tensor("logits_eval"), g.rtol(),
                            "logits_eval");
  }
}

TEST(VvtqGolden, SmallDeitW4A4) { check_model("vvtq/model_deit_w4a4.safetensors", small_deit); }
TEST(VvtqGolden, SmallDeitW2A2) { check_model("vvtq/model_deit_w2a2.safetensors", small_deit); }
TEST(VvtqGolden, SmallSwinW4A4) { check_model("vvtq/model_swin_w4a4.safetensors", small_swin); }
TEST(VvtqGolden, SmallSwinW2A2) { check_model("vvtq/model_swin_w2a2.safetensors", small_swin); }

TEST(VvtqGolden, SmallSretW4A4) { check_model("vvtq/model_sret_w4a4.safetensors", small_sret); }
TEST(VvtqGolden, SmallSretW2A2) { check_model("vvtq/model_sret_w2a2.safetensors", small_sret); }

TEST(VvtqGolden, BinRegularizer) {
  LOWBIT_GOLDEN_OR_SKIP(path, "vvtq/obr.safetensors");
  const GoldenFile g(path);
  for (const auto& [name, settings] : g.cases()) {
    SCOPED_TRACE(name);
    const Variable w(g.tensor(name + ".weight"), true), alpha(g.tensor(name + ".alpha"), true);
    const int bits = settings.at("nbits");
    BinRegularizerSettings s;
    s.levels = Levels::of(bits, true), s.slot = bits - 2;
    s.factor = bin_gradient_factor(w.data(), settings.at("kind") == "conv", s.levels.hi);
    const Variable r = bin_regularizer(w, alpha, s);
    expect_close(r.data(), g.tensor(name + ".loss"), g.rtol(), g.atol(), name + ".loss");
    r.backward();
    expect_close(w.grad(), g.tensor(name + ".grad_weight"), g.rtol(), g.atol(), name + ".grad_weight");
    expect_near_largest(alpha.grad(), g.tensor(name + ".grad_alpha"), 1e-3, g.atol(), name + ".grad_alpha");
  }
}

}  // namespace
}  // namespace lowbit
