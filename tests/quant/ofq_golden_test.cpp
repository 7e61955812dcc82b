// OFQ against the published code: quantizers, quantized layers and attention, forward and every gradient.

#include <gtest/gtest.h>

#include <set>

#include "autograd/core/node.h"
#include "nn/core/slot_info.h"
#include "nn/layers/mlp.h"
#include "nn/layers/patch_embed.h"
#include "nn/layers/window_attention.h"
#include "quant/freezing.h"
#include "quant/quantizer/ofq_quantizer.h"
#include "tests/support/ofq.h"

namespace lowbit::test {
namespace {

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
    placed(q);
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
    Generator random(1);
    Box box;
    auto& layer = box.hold("layer", std::make_unique<Linear>(w.size(2), w.size(1), false, random));
    install(box,
            parse_scheme(
                "[.*\\.weight]\nquantizer = ofq\ngranularity = channel\nname = lsqw_fn\nstate = .\nbits = " +
                    settings.at("bits").dump(),
                "test"));
    placed(box);
    Variable x = box.parameters().at(0).parameter->var, s = box.parameters().at(1).parameter->var;
    s.mutable_data().copy_from(part("p/s"));
    const double threshold = settings.at("threshold");
    IterativeFreezing freezing(
        box, {.momentum = settings.at("momentum"), .freeze_threshold = threshold, .totals = true});
    const auto state = [&](const char* key) { return freezing.state().at(str_cat("layer.weight/", key)); };
    Tensor total = Tensor::zeros(x.shape(), DType::i32, x.device());
    for (int64_t step = 0; step < w.size(0); ++step) {
      SCOPED_TRACE(step);
      const auto at = [&](const char* p) { return part(p).select(0, step).clone(); };
      x.mutable_data().copy_from(at("in/w"));
      s.zero_grad(), x.zero_grad();
      freezing.before_step();
      const Variable y = layer.quantized_weight();
      expect_close(y.data(), at("out/wq"), g.rtol(), g.atol(), "out/wq");
      y.backward(at("g_out"));
      freezing.before_update();
      expect_gradient(x.grad(), at("g_in/w"), g, "g_in/w");
      expect_gradient(s.grad(), at("g_p/s"), g, "g_p/s");
      freezing.after_update();
      const std::vector<int32_t> now = state("total").to_vector<int32_t>(),
                                 before = total.to_vector<int32_t>();
      int oscillated = 0;
      for (size_t i = 0; i < now.size(); ++i) oscillated += now[i] - before[i];
      EXPECT_EQ(oscillated, settings.at("oscillated_per_step").at(size_t(step)).get<int>());
      total.copy_from(state("total"));
    }
    expect_close(state("total").cast(DType::f32), part("out/total_oscillation"), 0, 0, "total");
    expect_close(state("frequency"), part("out/ema_oscillation"), 1e-5, 1e-7, "frequency");
    if (!g.has(name + "/out/frozen")) continue;
    const std::vector<uint8_t> frozen = state("frozen").to_vector<uint8_t>();
    EXPECT_EQ(frozen, part("out/frozen").to_vector<uint8_t>());
    expect_close(state("frozen_code").cast(DType::f32), part("out/frozen_x_int"), 0, 0, "frozen_code");
    expect_close(state("average"), part("out/ema_x_int"), 1e-5, 1e-6, "average");
    // Without the trackers the weights give what is frozen.
    const std::vector<float> value = layer.quantized_weight().data().to_vector<float>(),
                             code = state("frozen_code").cast(DType::f32).to_vector<float>(),
                             scale = s.data().to_vector<float>();
    for (size_t i = 0; i < value.size(); ++i) {
      if (!frozen[i]) continue;
      EXPECT_EQ(value[i], code[i] * scale[i / size_t(w.size(2))]) << i;
    }
  }
  EXPECT_EQ(cases, 3);
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
    placed(box);
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
    placed(box);
    check_layer(box, g, name, "blocks.0.mlp.", [&](const Variable& v) { return mlp(v); });
  }
}

/// What passes the slots of attention over groups of `tokens` tokens.
void describe_attention(Box& box, int64_t tokens, int64_t width, int64_t heads) {
  const std::string at = "blocks.0.attn.";
  box.infos[at + "qkx"] = {{1, heads, tokens, width}, heads};
  box.infos[at + "qk.weight"] = {{heads * width, width}};
  for (const char* slot : {"in", "q", "k", "v", "context"})
    box.infos[at + slot] = {{1, tokens, width}, heads};
  box.infos[at + "probs"] = {{1, heads, tokens, tokens}};
}

void check_attention(Box& box, const GoldenFile& g, const std::string& name, const Json& settings,
                     const std::function<Variable(const Variable&)>& run) {
  SchemeOptions o = bits_of(settings);
  o.qk_reparam = name.starts_with("qkr");
  install(box, ofq_scheme(o, name.starts_with("lsqboth")));
  placed(box);
  check_layer(box, g, name, "blocks.0.attn.", run, {"move_k_aft.bias", "move_qkx_aft.bias"});
}

TEST(OfqGolden, Attention) {
  LOWBIT_GOLDEN_OR_SKIP(path, "ofq/attention.safetensors");
  const GoldenFile g(path);
  for (const auto& [name, settings] : g.cases()) {
    SCOPED_TRACE(name);
    Box box;
    Generator random(1);
    const Shape x = g.tensor(name + "/in/x").shape();
    const Attention::Options o{
        .width = x[-1], .heads = settings.at("heads"), .qk_reparam = name.starts_with("qkr")};
    Attention& attn = box.hold("blocks.0.attn", std::make_unique<Attention>(o, random));
    describe_attention(box, x[1], o.width, o.heads);
    check_attention(box, g, name, settings, [&](const Variable& v) { return attn(v); });
  }
}

TEST(OfqGolden, WindowAttention) {
  LOWBIT_GOLDEN_OR_SKIP(path, "ofq/swin_attention.safetensors");
  const GoldenFile g(path);
  for (const auto& [name, settings] : g.cases()) {
    SCOPED_TRACE(name);
    Box box;
    Generator random(1);
    const Shape x = g.tensor(name + "/in/x").shape();
    WindowAttention::Options o;
    o.attention = {.width = x[-1], .heads = settings.at("heads"), .qk_reparam = name.starts_with("qkr")};
    o.height = x[1], o.width = x[2], o.window = settings.at("window"), o.shift = settings.at("shift");
    o.flat_index = true;
    auto& attn = box.hold("blocks.0.attn", std::make_unique<WindowAttention>(o, random));
    describe_attention(box, o.window * o.window, o.attention.width, o.attention.heads);
    check_attention(box, g, name, settings, [&](const Variable& v) { return attn(v); });
  }
}

/// Rows 0, 100 and 223 of [..., 224, 224].
Tensor stored_rows(const Tensor& t) {
  Shape s = t.shape();
  s.set(-2, 3);
  Tensor rows = Tensor::empty(s, t.dtype(), t.device());
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
    placed(box);
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

}  // namespace
}  // namespace lowbit::test
