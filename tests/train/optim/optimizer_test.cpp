#include "train/optim/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <deque>

#include "tensor/core/error.h"
#include "tensor/core/thread_pool.h"
#include "tests/support/golden.h"
#include "train/optim/clip.h"
#include "train/optim/ema.h"

namespace lowbit {
namespace {

/// Parameters without a model around them.
struct Set {
  std::deque<Parameter> storage;
  std::vector<NamedParameter> named;
  void add(const std::string& name, const Tensor& value, bool decay, bool trainable = true) {
    storage.push_back({name, Variable(value.clone(), trainable), decay, 1.f});
    named.push_back({name, &storage.back()});
  }
  Variable& operator[](const std::string& name) {
    for (auto& n : named)
      if (n.name == name) return n.parameter->var;
    throw std::out_of_range(name);
  }
  /// A gradient the way backward writes it: into the arena's window.
  void set_grad(const std::string& name, const Tensor& g) {
    GradMeta& m = *(*this)[name].meta();
    ASSERT_TRUE(m.fixed_buffer);
    m.grad.copy_from(g);
    m.has_grad = true;
  }
};

OptimizerOptions options_of(const nlohmann::json& c) {
  OptimizerOptions o;
  o.kind = c.value("opt", "adamw");
  o.weight_decay = c.at("weight_decay");
  if (c.contains("betas")) o.beta1 = c["betas"][0], o.beta2 = c["betas"][1];
  o.eps = c.value("eps", o.eps);
  o.momentum = c.value("momentum", o.momentum);
  return o;
}

void run_steps(const test::GoldenFile& golden, const std::string& name, const nlohmann::json& c) {
  Set set;
  int decayed = 0, exempt = 0;
  for (const char* p : {"w", "bias", "tok", "idle", "frozen"}) {
    const Tensor value = golden.tensor(name + "/p/" + p);
    const bool decay = takes_weight_decay(p, value.ndim(), {"tok"});
    set.add(p, value, decay, std::string(p) != "frozen");
    if (std::string(p) != "frozen") ++(decay ? decayed : exempt);
  }
  ParameterArena arena(set.named);
  Optimizer optimizer(arena, options_of(c));
  if (c.at("groups").size() == 2) {
    EXPECT_EQ(exempt, c["groups"][0].at("n").get<int>()) << name;
    EXPECT_EQ(decayed, c["groups"][1].at("n").get<int>()) << name;
  }
  for (int t = 0; t < c.at("steps").get<int>(); ++t) {
    optimizer.zero_grad();
    const std::string k = std::to_string(t + 1);
    for (const char* p : {"w", "bias", "tok", "idle"})
      if (golden.has(name + "/grad_" + k + "/" + p))
        set.set_grad(p, golden.tensor(name + "/grad_" + k + "/" + p));
    optimizer.step(c.at("lr").get<double>() * (1 - 0.1 * t));
    for (const char* p : {"w", "bias", "tok", "idle", "frozen"})
      test::expect_close(set[p].data(), golden.tensor(name + "/step_" + k + "/" + p), golden.rtol(),
                         golden.atol(), name + " step " + k + " " + p);
  }
}

void run_clip(const test::GoldenFile& golden, const std::string& name, const nlohmann::json& c) {
  Set set;
  for (const char* p : {"w", "bias", "tok"}) set.add(p, golden.tensor(name + "/p/" + p), true);
  ParameterArena arena(set.named);
  for (const char* p : {"w", "bias", "tok"}) set.set_grad(p, golden.tensor(name + "/in/" + p));
  clip_gradients(arena, clip_mode(c.at("mode")), c.at("value"));
  for (const char* p : {"w", "bias", "tok"})
    test::expect_close(set[p].grad(), golden.tensor(name + "/out/" + p), golden.rtol(), golden.atol(),
                       name + " " + p);
}

void run_ema(const test::GoldenFile& golden, const std::string& name, const nlohmann::json& c) {
  Set set;
  set.add("w", golden.tensor(name + "/p/w"), true);
  set.add("bias", golden.tensor(name + "/p/bias"), true);
  const Tensor buffer = golden.tensor(name + "/p/tok").clone();  // a buffer shares memory with the model
  ParameterArena arena(set.named);
  Ema ema(arena, {{"w", set["w"].data()}, {"bias", set["bias"].data()}, {"tok", buffer}}, c.at("decay"));
  for (int t = 1; golden.has(name + "/in_" + std::to_string(t) + "/w"); ++t) {
    const std::string in = name + "/in_" + std::to_string(t) + "/",
                      out = name + "/out_" + std::to_string(t) + "/";
    for (const char* p : {"w", "bias"}) set[p].set_data(golden.tensor(in + p));
    Tensor(buffer).copy_from(golden.tensor(in + "tok"));
    ema.update();
    const TensorMap state = ema.state();
    for (const char* p : {"w", "bias", "tok"})
      test::expect_close(state.at(p), golden.tensor(out + p), golden.rtol(), golden.atol(), out + p);
  }
}

TEST(Optimizer, EveryCaseOfTheOfqGoldenFile) {
  LOWBIT_GOLDEN_OR_SKIP(path, "ofq/optim.safetensors");
  const test::GoldenFile golden(path);
  ASSERT_FALSE(golden.cases().empty());
  for (const auto& [name, c] : golden.cases()) {
    if (c.contains("opt"))
      run_steps(golden, name, c);
    else if (c.contains("mode"))
      run_clip(golden, name, c);
    else
      run_ema(golden, name, c);
  }
}

TEST(Optimizer, EveryCaseOfTheVvtqGoldenFile) {
  LOWBIT_GOLDEN_OR_SKIP(path, "vvtq/adamw.safetensors");
  const test::GoldenFile golden(path);
  int cases = 0;
  for (const auto& key : golden.names()) {
    if (!key.ends_with(".lr")) continue;
    ++cases;
    const std::string name = key.substr(0, key.size() - 3);
    const auto lr = golden.tensor(key).to_vector<float>();
    Set set;
    set.add("0", golden.tensor(name + ".p.0.0"), true);
    set.add("1", golden.tensor(name + ".p.1.0"), false);
    ParameterArena arena(set.named);
    Optimizer optimizer(arena, options_of(golden.meta_json(name)));
    for (size_t t = 0; t < lr.size(); ++t) {
      for (const char* k : {"0", "1"}) set.set_grad(k, golden.tensor(str_cat(name, ".grad.", k, ".", t)));
      optimizer.step(double(lr[t]));
      for (const char* k : {"0", "1"})
        test::expect_close(set[k].data(), golden.tensor(str_cat(name, ".p.", k, ".", t + 1)), golden.rtol(),
                           golden.atol(), str_cat(name, " step ", t, " ", k));
    }
  }
  EXPECT_GT(cases, 0);
}

/// Three tensors whose sizes straddle the chunks, with one gradient missing in the first step.
Set odd_set() {
  Set set;
  set.add("a", test::fill("a", {3, kUpdateChunk - 5}, 0, 1), true);
  set.add("b", test::fill("b", {17}, 0, 1), false);
  set.add("c", test::fill("c", {2 * kUpdateChunk + 1}, 0, 1), true);
  return set;
}

void some_steps(Set& set, ParameterArena& arena, Optimizer& optimizer, int from, int to) {
  for (int t = from; t < to; ++t) {
    arena.zero_grad();
    for (const char* p : {"a", "b", "c"})
      if (t > 0 || *p != 'c') set.set_grad(p, test::fill(str_cat(p, t), set[p].shape(), 0, 0.5));
    clip_gradients(arena, ClipMode::norm, 5);
    optimizer.step(1e-2);
  }
}

TEST(Optimizer, SameBitsForAnyNumberOfThreads) {
  for (const char* kind : {"adamw", "adam", "sgd", "momentum"}) {
    Tensor expected;
    for (int n : {1, 2, 3}) {
      set_threads(n);
      Set set = odd_set();
      ParameterArena arena(set.named);
      Optimizer optimizer(arena, {.kind = kind});
      some_steps(set, arena, optimizer, 0, 3);
      if (n == 1)
        expected = arena.values().flat().clone();
      else
        EXPECT_TRUE(equal_bits(arena.values().flat(), expected)) << kind << " threads " << n;
    }
    set_threads(0);
  }
}

TEST(Optimizer, StateContinuesBitForBit) {
  for (const char* kind : {"adamw", "sgd"}) {
    Set whole = odd_set(), half = odd_set(), rest = odd_set();
    ParameterArena a(whole.named), b(half.named), c(rest.named);
    Optimizer oa(a, {.kind = kind}), ob(b, {.kind = kind}), oc(c, {.kind = kind});
    some_steps(whole, a, oa, 0, 4);
    some_steps(half, b, ob, 0, 2);
    c.values().load(b.values().state());
    oc.load(ob.state());
    some_steps(rest, c, oc, 2, 4);
    EXPECT_TRUE(equal_bits(a.values().flat(), c.values().flat())) << kind;
    TensorMap broken = ob.state();
    broken.erase(broken.begin());
    EXPECT_THROW(oc.load(broken), Error);
  }
}

TEST(Arena, ParametersKeepTheirValuesAndShareTheArena) {
  Set set = odd_set();
  const Tensor before = set["b"].data().clone();
  ParameterArena arena(set.named);
  EXPECT_TRUE(equal_bits(set["b"].data(), before));
  const uint32_t version = set["b"].data().version();
  set["a"].set_data(set["a"].data().clone());
  EXPECT_EQ(set["b"].data().version(), version);  // a write of one parameter is not one of another
  arena.values().flat().fill(2);
  arena.values().touch();
  EXPECT_EQ(set["b"].data().to_vector<float>()[16], 2.f);
  EXPECT_GT(set["b"].data().version(), version);
  EXPECT_EQ(arena.layout().numel(), set["a"].numel() + set["b"].numel() + set["c"].numel());
  for (const auto& s : arena.layout().slices) EXPECT_EQ(s.offset % kArenaAlign, 0);
}

TEST(Clip, AParameterWithoutGradientDoesNotCount) {
  Set set = odd_set();
  ParameterArena arena(set.named);
  arena.grads().flat().fill(1e6);  // stale numbers
  set.set_grad("b", Tensor::full({17}, 2));
  const auto norm = [&] { return gradient_norm(arena).to_vector<double>()[0]; };
  EXPECT_NEAR(norm(), std::sqrt(17 * 4.0), 1e-6);
  clip_gradients(arena, ClipMode::norm, 1);
  EXPECT_NEAR(norm(), 1, 1e-6);
  EXPECT_EQ(std::as_const(arena).grads().flat().data<float>()[0], 1e6f);
}

TEST(Clip, NormOfLongTensorsIsAccurate) {
  Set set;
  const int64_t n = 4096 * 5 + 77;
  set.add("x", Tensor::zeros({n}), true);
  ParameterArena arena(set.named);
  const Tensor g = test::fill("g", {n}, 0.1, 3);
  set.set_grad("x", g);
  double expected = 0;
  for (float v : g.to_vector<float>()) expected += double(v) * v;
  EXPECT_NEAR(gradient_norm(arena).to_vector<double>()[0], std::sqrt(expected), 1e-6 * std::sqrt(expected));
}

TEST(Ema, SwapExchangesAndPutsBack) {
  Set set = odd_set();
  ParameterArena arena(set.named);
  Ema ema(arena, {}, 0.5);
  const Tensor start = arena.values().flat().clone();
  arena.values().flat().fill(1);
  ema.swap();
  EXPECT_TRUE(equal_bits(arena.values().flat(), start));
  EXPECT_EQ(ema.state().at("b").to_vector<float>()[0], 1.f);
  ema.swap();
  EXPECT_EQ(set["b"].data().to_vector<float>()[0], 1.f);
}

}  // namespace
}  // namespace lowbit
