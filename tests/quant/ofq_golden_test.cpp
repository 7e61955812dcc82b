// OFQ against the published code: quantizers, quantized layers, attention and a small network, forward and
// every gradient.

#include <gtest/gtest.h>

#include <fstream>
#include <set>

#include "autograd/core/node.h"
#include "autograd/ops/broadcast.h"
#include "autograd/ops/cross_entropy.h"
#include "autograd/ops/softmax.h"
#include "nn/models/vit.h"
#include "quant/quantizer/ofq_quantizer.h"
#include "quant/scheme/scheme.h"
#include "tests/support/golden.h"

namespace lowbit::test {
namespace {

using Json = nlohmann::json;

/// Scale gradients are sums with cancellation: relative to the largest, as the file's notes say.
void expect_gradient(const Tensor& ours, const Tensor& theirs, const GoldenFile& g, const std::string& what) {
  // What no path reaches has no gradient here and zeros there.
  const Tensor grad = ours.defined() ? ours : Tensor::zeros(theirs.shape());
  if (what.ends_with(".s") || what.ends_with("/s"))
    expect_close_to_largest(grad, theirs, 1e-3, what);
  else
    expect_close(grad, theirs, g.rtol(), g.atol(), what);
}

/// Tensors "<prefix><name>" under our names: the shift of q, k and v is one parameter in the files.
std::map<std::string, Tensor> part_of(const GoldenFile& g, const std::string& prefix) {
  std::map<std::string, Tensor> all;
  for (const std::string& key : g.names_with_prefix(prefix)) {
    const std::string name = key.substr(prefix.size());
    const size_t at = name.find("move_qkv_b4");
    const Tensor t = g.tensor(key);
    if (at == std::string::npos) {
      all[name] = t;
      continue;
    }
    const int64_t c = t.size(0) / 3;
    for (int i = 0; i < 3; ++i)
      all[name.substr(0, at) + "move_" + "qkv"[i] + "_b4.bias"] = t.slice(0, i * c, (i + 1) * c).clone();
  }
  return all;
}

// ---------------------------------------------------------------- the quantizer alone

OfqConfig config_of(const Json& s, const Shape& x) {
  OfqConfig c;
  const std::string kind = s.value("quantizer", "LsqQuantizer");
  c.spec.bits = s.at("bits");
  c.spec.is_signed = !s.value("all_positive", false);
  c.image = kind == "LsqQuantizer4img";
  c.spec.is_weight = kind == "LsqQuantizerWeight" || kind == "LsqQuantizer4Conv2d";
  static const std::map<std::string, int> kAxis = {{"LsqQuantizer", -2},
                                                   {"LsqQuantizer4v", -1},
                                                   {"LsqQuantizer4head_input", Coded::kPerTensor},
                                                   {"LsqQuantizer_only_headwise", -3},
                                                   {"LsqQuantizerWeight", -2},
                                                   {"LsqQuantizer4Conv2d", -4},
                                                   {"LsqQuantizer4img", -3}};
  c.spec.axis = s.value("per_channel", true) ? kAxis.at(kind) : Coded::kPerTensor;
  c.spec.groups = c.spec.axis == Coded::kPerTensor ? 1 : x[c.spec.axis];
  return c;
}

TEST(OfqGolden, Lsq) {
  LOWBIT_GOLDEN_OR_SKIP(path, "ofq/lsq.safetensors");
  const GoldenFile g(path);
  for (const auto& [name, settings] : g.cases()) {
    if (name.starts_with("iterative_freeze")) continue;  // OfqGolden.IterativeFreezing
    SCOPED_TRACE(name);
    const auto part = [&, n = name](const char* p) { return g.tensor(n + "/" + p); };
    const Variable x(part("in/x"), true);
    OfqQuantizer q(config_of(settings, x.shape()));
    q.set_quant_state(settings.value("learnable", true) ? QuantState::learned : QuantState::fixed, "test");
    EXPECT_FALSE(q.initialised());
    if (g.has(name + "/init/x")) {
      (void)q.fake_quant(Variable(part("init/x")));
      expect_close(q.scale(), part("init/s"), g.rtol(), 0, name + "/init/s");
    }
    q.set_scale(part("p/s"));
    const Variable y = q.fake_quant(x);
    expect_close(y.data(), part("out/y"), g.rtol(), g.atol(), name + "/out/y");
    if (settings.contains("signed_flag")) {
      EXPECT_EQ(q.state().at("signed").item<float>(), settings.at("signed_flag").get<float>());
    }
    y.backward(part("g_out"));
    expect_gradient(x.grad(), part("g_in/x"), g, name + "/g_in/x");
    const Variable s = q.parameters()[0].parameter->var;
    EXPECT_EQ(s.requires_grad(), g.has(name + "/g_p/s"));
    if (s.requires_grad()) expect_gradient(s.grad(), part("g_p/s"), g, name + "/g_p/s");
  }
}

TEST(OfqGolden, IterativeFreezing) {
  LOWBIT_GOLDEN_OR_SKIP(path, "ofq/lsq.safetensors");
  const GoldenFile g(path);
  int cases = 0;
  for (const auto& [name, settings] : g.cases()) {
    if (!name.starts_with("iterative_freeze")) continue;
    ++cases;
    SCOPED_TRACE(name);
    const auto part = [&, n = name](const char* p) { return g.tensor(n + "/" + p); };
    const Tensor w = part("in/w");  // [steps, rows, columns]
    OfqConfig c = config_of({{"bits", settings.at("bits")}, {"quantizer", "LsqQuantizerWeight"}},
                            w.select(0, 0).shape());
    c.freeze = OscillationSettings{
        .momentum = settings.at("momentum"), .freeze_threshold = settings.at("threshold"), .totals = true};
    OfqQuantizer q(c);
    q.set_quant_state(QuantState::learned, "test");
    q.set_scale(part("p/s"));
    const Variable s = q.parameters()[0].parameter->var;
    Tensor total = Tensor::zeros(w.select(0, 0).shape(), DType::i32);
    for (int64_t step = 0; step < w.size(0); ++step) {
      SCOPED_TRACE(step);
      const auto at = [&](const char* p) { return part(p).select(0, step).clone(); };
      const Variable x(at("in/w"), true);
      s.zero_grad();
      const Variable y = q.fake_quant(x);
      expect_close(y.data(), at("out/wq"), g.rtol(), g.atol(), "out/wq");
      y.backward(at("g_out"));
      expect_gradient(x.grad(), at("g_in/w"), g, "g_in/w");
      expect_gradient(s.grad(), at("g_p/s"), g, "g_p/s");
      const std::vector<int32_t> now = q.tracker().state().at("total").to_vector<int32_t>(),
                                 before = total.to_vector<int32_t>();
      int oscillated = 0;
      for (size_t i = 0; i < now.size(); ++i) oscillated += now[i] - before[i];
      EXPECT_EQ(oscillated, settings.at("oscillated_per_step").at(size_t(step)).get<int>());
      total.copy_from(q.tracker().state().at("total"));
    }
    const TensorMap& state = q.tracker().state();
    expect_close(state.at("total").cast(DType::f32), part("out/total_oscillation"), 0, 0, "total");
    expect_close(state.at("frequency"), part("out/ema_oscillation"), 1e-5, 1e-7, "frequency");
    if (!g.has(name + "/out/frozen")) continue;
    EXPECT_EQ(state.at("frozen").to_vector<uint8_t>(), part("out/frozen").to_vector<uint8_t>());
    expect_close(state.at("frozen_code").cast(DType::f32), part("out/frozen_x_int"), 0, 0, "frozen_code");
    expect_close(state.at("average"), part("out/ema_x_int"), 1e-5, 1e-6, "average");
    // Evaluation applies what is frozen and moves nothing.
    const std::vector<float> frequency = state.at("frequency").to_vector<float>();
    q.eval();
    (void)q.fake_quant(Variable(w.select(0, 0).clone()));
    EXPECT_EQ(q.tracker().frequency().to_vector<float>(), frequency);
  }
  EXPECT_EQ(cases, 3);
}

// ---------------------------------------------------------------- layers

/// One layer under a path of a model, with what passes its slots.
class Box final : public Module, public DescribesSlots {
 public:
  template <class M>
  M& hold(const std::string& path, std::unique_ptr<M> m) {
    return child(path, std::move(m));
  }
  Slot& in(const std::string& path) { return slot(path); }
  std::map<std::string, SlotInfo> infos;
  std::map<std::string, SlotInfo> slot_info() const override { return infos; }
};

SchemeOptions bits_of(const Json& settings) {
  SchemeOptions o;
  o.wbits = settings.value("wbits", 32), o.abits = settings.value("abits", 32);
  return o;
}

/// The baseline: LSQ instead of StatsQ.
Scheme ofq_scheme(const SchemeOptions& o, bool lsq_weights) {
  Scheme scheme = load_scheme("ofq", o);
  if (!lsq_weights) return scheme;
  for (Rule& r : scheme.rules)
    if (auto& s = r.settings; s.count("quantizer") && s["quantizer"] == "statsq")
      s = {{"quantizer", "ofq"},
           {"bits", s["bits"]},
           {"granularity", "channel"},
           {"state", "."},
           {"name", "lsqw_fn"}};
  return scheme;
}

/// Initialises on init/x and compares the scales; then the file's parameters, forward and all gradients.
void check_layer(Module& model, const GoldenFile& g, const std::string& name, const std::string& at,
                 const std::function<Variable(const Variable&)>& run,
                 const std::set<std::string>& zero_gradients = {}) {
  const std::map<std::string, Tensor> theirs = part_of(g, name + "/p/");
  std::map<std::string, Tensor> state = model.state();
  const auto load = [&](bool scales) {
    size_t found = 0;
    for (auto& [n, t] : state) {
      if (!n.starts_with(at) || !theirs.count(n.substr(at.size()))) continue;
      ++found;
      if (scales || !n.ends_with(".s")) t.copy_from(theirs.at(n.substr(at.size())).reshape(t.shape()));
    }
    EXPECT_EQ(found, theirs.size()) << "every parameter of the file has its place";
    EXPECT_EQ(state.size(), theirs.size()) << "and the file has every parameter";
  };
  load(false);
  const auto input = [&](const char* p) { return g.tensor(name + "/" + p); };
  {
    const NoGrad off;
    (void)run(Variable(input("init/x")));
  }
  for (const auto& [n, t] : theirs)
    if (n.ends_with(".s")) expect_close(state.at(at + n), t, 1e-4, 0, name + " initial " + n);
  load(true);
  const Variable x(input("in/x"), true);
  const Variable y = run(x);
  expect_close(y.data(), input("out/y"), g.rtol(), g.atol(), name + "/out/y");
  y.backward(input("g_out"));
  expect_gradient(x.grad(), input("g_in/x"), g, name + "/g_in/x");
  std::map<std::string, Tensor> ours;
  for (const NamedParameter& p : model.parameters()) ours[p.name] = p.parameter->var.grad();
  for (const auto& [n, t] : part_of(g, name + "/g_p/")) {
    SCOPED_TRACE(n);
    ASSERT_TRUE(ours.count(at + n));
    if (zero_gradients.count(n))
      expect_close(ours.at(at + n), t, 0, g.atol(), n);
    else
      expect_gradient(ours.at(at + n), t, g, name + "/g_p/" + n);
  }
}

TEST(OfqGolden, Linear) {
  LOWBIT_GOLDEN_OR_SKIP(path, "ofq/qlinear.safetensors");
  const GoldenFile g(path);
  for (const auto& [name, settings] : g.cases()) {
    SCOPED_TRACE(name);
    const std::string kind = settings.at("module");
    const bool head = kind == "LSQ_QLinear4head", input_only = kind == "LSQ_input";
    SchemeOptions o = bits_of(settings);
    const std::string text = str_cat(
        "[in]\nquantizer = ofq\nbits = ${abits}\nstate = layer\nname = input_quant_fn\nbefore = move_b4\n"
        "after = move_aft\ngranularity = ",
        head ? "tensor" : "token", "\nsigned = ", settings.at("all_positive") ? "no" : "yes",
        "\n[layer\\.weight]\nbits = ${wbits}\n",
        kind == "QLinear" ? "quantizer = statsq\nstate = statsq_fn"
                          : "quantizer = ofq\ngranularity = channel\nstate = .\nname = lsqw_fn");
    const Tensor x = g.tensor(name + "/in/x");
    Box box;
    Slot& in = box.in("in");
    Generator random(1);
    Linear* layer = nullptr;
    if (!input_only)
      layer = &box.hold(
          "layer", std::make_unique<Linear>(x.size(-1), g.tensor(name + "/out/y").size(-1), true, random));
    box.infos["in"] = {x.shape()};
    install(box, parse_scheme(text, "test", o));
    check_layer(box, g, name, "layer.", [&](const Variable& v) { return layer ? (*layer)(in(v)) : in(v); });
  }
}

TEST(OfqGolden, Mlp) {
  LOWBIT_GOLDEN_OR_SKIP(path, "ofq/mlp.safetensors");
  const GoldenFile g(path);
  for (const auto& [name, settings] : g.cases()) {
    SCOPED_TRACE(name);
    Box box;
    Generator random(1);
    Shape x = g.tensor(name + "/in/x").shape();
    const int64_t hidden = g.tensor(name + "/p/fc1.weight").size(0);
    Mlp& mlp = box.hold(
        "blocks.0.mlp",
        std::make_unique<Mlp>(
            Mlp::Options{.width = x[-1], .hidden = hidden, .relu = name.starts_with("relu")}, random));
    box.infos["blocks.0.mlp.in"] = {x};
    x.set(-1, hidden);
    box.infos["blocks.0.mlp.hidden"] = {x};
    install(box, ofq_scheme(bits_of(settings), name.starts_with("lsqboth")));
    check_layer(box, g, name, "blocks.0.mlp.", [&](const Variable& v) { return mlp(v); });
  }
}

TEST(OfqGolden, Attention) {
  LOWBIT_GOLDEN_OR_SKIP(path, "ofq/attention.safetensors");
  const GoldenFile g(path);
  for (const auto& [name, settings] : g.cases()) {
    SCOPED_TRACE(name);
    const bool fused = name.starts_with("qkr");
    Box box;
    Generator random(1);
    const Shape x = g.tensor(name + "/in/x").shape();
    const int64_t heads = settings.at("heads");
    Attention& attn =
        box.hold("blocks.0.attn",
                 std::make_unique<Attention>(
                     Attention::Options{.width = x[-1], .heads = heads, .qk_reparam = fused}, random));
    box.infos["blocks.0.attn.qkx"] = {{1, x[1] * heads, x[-1]}, heads};
    box.infos["blocks.0.attn.qk.weight"] = {{heads * x[-1], x[-1]}};
    for (const char* slot : {"in", "q", "k", "v", "context"})
      box.infos[str_cat("blocks.0.attn.", slot)] = {x, heads};
    box.infos["blocks.0.attn.probs"] = {{1, heads, x[1], x[1]}};
    SchemeOptions o = bits_of(settings);
    o.qk_reparam = fused;
    install(box, ofq_scheme(o, name.starts_with("lsqboth")));
    check_layer(box, g, name, "blocks.0.attn.", [&](const Variable& v) { return attn(v); },
                {"move_k_aft.bias", "move_qkx_aft.bias"});
  }
}

/// Rows 0, 100 and 223 of [..., 224, 224].
Tensor stored_rows(const Tensor& t) {
  Shape s = t.shape();
  s.set(-2, 3);
  Tensor rows = Tensor::empty(s);
  const int dim = t.ndim() - 2;
  int64_t to = 0;
  for (const int64_t row : {0, 100, 223}) {
    Tensor window = rows.slice(dim, to, to + 1);
    window.copy_from(t.slice(dim, row, row + 1));
    ++to;
  }
  return rows;
}

/// [B, tokens, C] as the [B, C, H, W] of a convolution.
Tensor as_map(const Tensor& t, int64_t side) {
  return t.packed().reshape({t.size(0), side, side, t.size(2)}).permute({0, 3, 1, 2}).packed();
}

TEST(OfqGolden, PatchEmbedding) {
  LOWBIT_GOLDEN_OR_SKIP(path, "ofq/qconv.safetensors");
  const GoldenFile g(path);
  for (const auto& [name, settings] : g.cases()) {
    SCOPED_TRACE(name);
    const int64_t patch = settings.at("kernel"), side = 224 / patch,
                  width = g.tensor(name + "/p/bias").numel();
    const Shape image{1, 3, 224, 224};
    Box box;
    Generator random(1);
    PatchEmbed& embed = box.hold("patch_embed", std::make_unique<PatchEmbed>(3, width, patch, random));
    box.infos["patch_embed.in"] = {image};
    install(box, load_scheme("ofq"));
    std::map<std::string, Tensor> state = box.state();
    const std::map<std::string, Tensor> theirs = part_of(g, name + "/p/");
    const auto load = [&](bool scales) {
      for (auto& [n, t] : state) {
        const std::string own = n.substr(std::string("patch_embed.proj.").size());
        if (own.starts_with("move_"))
          t.copy_from(fill(name + "/" + own, t.shape(), 0, 0.1));
        else if (scales || !own.ends_with(".s"))
          t.copy_from(theirs.at(own));
      }
    };
    load(false);
    (void)embed(Variable(fill(name + "/0/x0", image, 0, 2)));
    for (const auto& [n, t] : theirs) expect_close(state.at("patch_embed.proj." + n), t, 1e-4, 0, n);
    load(true);
    const Variable x(fill(name + "/0/x", image, 0, 2), true);
    const Variable y = embed(x);
    expect_close(as_map(y.data(), side), g.tensor(name + "/out/y"), g.rtol(), g.atol(), name + "/out/y");
    const Tensor gy = g.tensor(name + "/g_out");
    y.backward(gy.permute({0, 2, 3, 1}).packed().reshape({1, side * side, width}));
    expect_gradient(stored_rows(x.grad()), g.tensor(name + "/g_in/x_rows"), g, name + "/g_in/x_rows");
    for (const NamedParameter& p : box.parameters()) {
      const std::string own = p.name.substr(std::string("patch_embed.proj.").size());
      const Tensor grad = p.parameter->var.grad();
      if (own.starts_with("move_"))
        expect_gradient(stored_rows(grad.reshape({224, 224})), g.tensor(name + "/g_p/" + own + "_rows"), g,
                        own);
      else
        expect_gradient(grad, g.tensor(name + "/g_p/" + own), g, own);
    }
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
    c.distilled = true;
    c.qk_reparam = name.starts_with("qkr");
    VisionTransformer model(c, 0);
    SchemeOptions o = bits_of(settings);
    o.qk_reparam = c.qk_reparam;
    Scheme scheme = load_scheme("ofq", o);
    scheme.rules.push_back({R"(patch_embed\..*)", {{"quantizer", "none"}}});  // float in this file
    install(model, scheme);
    const std::map<std::string, Tensor> theirs = part_of(g, name + "/p/");
    std::map<std::string, Tensor> state = model.state();
    ASSERT_EQ(state.size(), theirs.size());
    for (auto& [n, t] : state)
      if (!n.ends_with(".s")) t.copy_from(theirs.at(n));
    const auto part = [&, n = name](const char* p) { return g.tensor(n + "/" + p); };
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
    expect_close_to_largest(heads.cls.data(), part("out/cls"), 1e-4, "cls");
    expect_close_to_largest(heads.dist.data(), part("out/dist"), 1e-4, "dist");
    const Variable loss = add(cross_entropy(heads.cls, part("in/label")),
                              teacher_cross_entropy(heads.dist, Variable(part("in/teacher_logits"))));
    expect_close(loss.data(), part("out/loss"), 1e-5, 0, "loss");
    loss.backward();
    expect_close_to_largest(x.grad(), part("g_in/x"), 1e-4, "g_in/x");
    std::map<std::string, Tensor> ours;
    for (const NamedParameter& p : model.parameters()) ours[p.name] = p.parameter->var.grad();
    for (const auto& [n, t] : part_of(g, name + "/g_p/")) {
      if (n.ends_with("move_k_aft.bias") || n.ends_with("move_qkx_aft.bias"))  // zero but for rounding
        expect_close(ours.at(n), t, 0, 1e-6, n);
      else
        expect_close_to_largest(ours.at(n), t, n.ends_with(".s") ? 1e-3 : 1e-4, n);
    }
  }
}

/// Names and shapes of a published model, the shift of q, k and v in three parts.
void check_names(const Json& list, const std::string& model_name, bool fused) {
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
  VitConfig c = vit_config(model_name);
  c.qk_reparam = fused;
  VisionTransformer model(c, 0);
  SchemeOptions o;
  o.qk_reparam = fused;
  install(model, load_scheme("ofq", o));
  for (const auto& [name, t] : model.state()) actual[name] = t.shape().str();
  EXPECT_EQ(actual, expected);
}

TEST(OfqGolden, CheckpointNames) {
  LOWBIT_GOLDEN_OR_SKIP(path, "ofq/parameters.json");
  std::ifstream f(path);
  const Json models = Json::parse(f).at("models");
  for (const char* size : {"deit_t", "deit_s"})
    for (const char* form : {"plain", "qkr"}) {
      SCOPED_TRACE(std::string(size) + "/" + form);
      const bool tiny = std::string(size) == "deit_t", fused = std::string(form) == "qkr";
      check_names(models.at(std::string(size) + "/" + form),
                  tiny ? "deit_tiny_distilled_patch16_224" : "deit_small_distilled_patch16_224", fused);
    }
}

}  // namespace
}  // namespace lowbit::test
