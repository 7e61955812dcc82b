// The LSQ family against the stored results of the published quantizers. Every case found in a file is
// checked, on the code path and on the float path.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "autograd/core/node.h"
#include "quant/observer/statistics.h"
#include "quant/quantizer/lsq_quantizer.h"
#include "tensor/core/context.h"
#include "tests/support/golden.h"

namespace lowbit {
namespace {

using test::expect_close;
using test::GoldenFile;

/// "lin.b2" for every "lin.b2.<field>".
std::vector<std::string> cases_with(const GoldenFile& f, const std::string& field) {
  std::vector<std::string> all;
  const std::string ending = "." + field;
  for (const std::string& n : f.names())
    if (n.size() > ending.size() && n.ends_with(ending)) all.push_back(n.substr(0, n.size() - ending.size()));
  return all;
}

bool has_part(const std::string& name, const std::string& part) {
  return ("." + name + ".").find("." + part + ".") != std::string::npos;
}

int bits_in(const std::string& name) { return std::stoi(name.substr(name.find(".b") + 2)); }

/// The stored sums were added in another order: files of bitwise tolerance allow a few ulp here.
double rtol_alpha(const GoldenFile& f) {
  return std::max(1e-6, std::stod(f.meta("rtol_grad_alpha", std::to_string(f.rtol()))));
}

constexpr double kUlp = 1.0 / (1 << 23);

/// The stored gradient of beta is a difference of two float32 sums over G, so it carries their rounding also
/// where the exact value is 0 (nothing clipped).
double atol_beta(const GoldenFile& f, const Tensor& gy) {
  double sum = 0;
  for (float g : gy.to_vector<float>()) sum += g;
  return f.atol() + 2 * kUlp * std::fabs(sum);
}

struct IntegerProducts {
  explicit IntegerProducts(bool on) : before(std::exchange(context().integer_products, on)) {}
  ~IntegerProducts() { context().integer_products = before; }
  bool before;
};

/// A trained quantizer with the given state; fields of it are then compared by name.
struct Case {
  std::unique_ptr<LsqQuantizer> q;
  Case(const LsqConfig& c, const std::map<std::string, Tensor>& values)
      : q(std::make_unique<LsqQuantizer>(c)) {
    test::placed(*q);
    std::map<std::string, Tensor> state = q->state();
    state.at("init_state").fill(1);
    for (const auto& [name, t] : values) state.at(name).copy_from(t);
    q->set_label("case");
    q->set_quant_state(QuantState::learned, "test");
  }
  Tensor grad(const std::string& name) {
    for (NamedParameter& p : q->parameters())
      if (p.name == name) return p.parameter->var.grad();
    return {};
  }
  Tensor value(const std::string& name) { return q->state().at(name); }
};

struct Result {
  Tensor y, dx;
};
Result run(Case& c, const Tensor& x, const Tensor& gy) {
  const Variable in(x, true);
  const Variable y = c.q->fake_quant(in);
  Result r{y.data(), {}};
  y.backward(gy);
  r.dx = in.grad();
  return r;
}

/// y and the gradients of x and of the state, both ways of computing; returns the code path's result.
Result check(const LsqConfig& c, const std::map<std::string, Tensor>& state, const Tensor& x,
             const Tensor& gy, const std::map<std::string, Tensor>& expected, const GoldenFile& f,
             const std::string& name) {
  Case coded(c, state), floats(c, state);
  const Result a = run(coded, x, gy);
  const IntegerProducts off(false);
  const Result b = run(floats, x, gy);
  EXPECT_TRUE(equal_bits(a.y, b.y)) << name << ": codes and floats give different bits";
  EXPECT_TRUE(equal_bits(a.dx, b.dx)) << name;
  for (const auto& [field, t] : expected) {
    if (field == "y")
      expect_close(a.y, t, f.rtol(), f.atol(), name + ".y");
    else if (field == "x")
      expect_close(a.dx, t, f.rtol(), f.atol(), name + ".grad_x");
    else {
      const Tensor g = coded.grad(field);
      if (!g.defined()) {
        ADD_FAILURE() << name << ": no gradient for " << field;
        continue;
      }
      expect_close(g, t, field == "alpha" ? rtol_alpha(f) : f.rtol(),
                   field == "beta" ? atol_beta(f, gy) : f.atol(), name + ".grad_" + field);
      EXPECT_TRUE(equal_bits(g, floats.grad(field))) << name << "." << field;
    }
  }
  return a;
}

/// Cross-correlation with zero padding 1 (weights [O, C, 3, 3]) or a linear layer (weights [N, K]), in
/// double.
struct Product {
  bool conv;
  int64_t rows, outputs, inner, side = 1;
  Product(const Tensor& x, const Tensor& w)
      : conv(w.ndim() == 4), rows(x.numel() / x.size(-1)), outputs(w.size(0)), inner(w.numel() / w.size(0)) {
    if (conv) rows = x.size(0), side = x.size(2);
  }
  /// f(index of y, index of x, index of w) over all products.
  template <class F>
  void each(F f) const {
    if (!conv) {
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t n = 0; n < outputs; ++n)
          for (int64_t k = 0; k < inner; ++k) f(r * outputs + n, r * inner + k, n * inner + k);
      return;
    }
    const int64_t c = inner / 9, s = side;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t n = 0; n < outputs; ++n)
        for (int64_t i = 0; i < s * s; ++i)
          for (int64_t k = 0; k < inner; ++k) {
            const int64_t row = i / s + k % 9 / 3 - 1, col = i % s + k % 3 - 1;
            if (row < 0 || col < 0 || row >= s || col >= s) continue;
            f((r * outputs + n) * s * s + i, ((r * c + k / 9) * s + row) * s + col, n * inner + k);
          }
  }
};

/// A sum of products and the rounding that a float32 result of it may carry: one ulp of Σ|a·b|.
struct Sums {
  Shape shape;
  std::vector<double> value, gross;
  explicit Sums(const Shape& s) : shape(s), value(size_t(s.numel()), 0.0), gross(value) {}
  void add(int64_t at, float a, float b) {
    value[size_t(at)] += double(a) * b;
    gross[size_t(at)] += std::fabs(double(a) * b);
  }
  Tensor tensor() const {
    return Tensor::from(std::span<const double>(value), shape).cast(DType::f32).to(test::test_device());
  }
  double rounding() const { return kUlp * *std::max_element(gross.begin(), gross.end()); }
};

/// A layer whose weight is quantized: y, grad_x and the weight's gradients, through the stored upstream.
void check_layer(const LsqConfig& c, const std::map<std::string, Tensor>& state, const GoldenFile& f,
                 const std::string& name, const std::map<std::string, Tensor>& expected_state) {
  const Tensor x = f.tensor(name + ".x"), w = f.tensor(name + ".weight"), up = f.tensor(name + ".upstream");
  const std::vector<float> xs = x.to_vector<float>(), ups = up.to_vector<float>();
  const Product p(x, w);
  Sums dwq(w.shape()), y(up.shape()), dx(x.shape());
  p.each([&](int64_t o, int64_t i, int64_t k) { dwq.add(k, ups[size_t(o)], xs[size_t(i)]); });
  const Result r = check(c, state, w, dwq.tensor(), expected_state, f, name + " (weight)");
  expect_close(r.dx, f.tensor(name + ".grad_weight"), f.rtol(), f.atol() + dwq.rounding(),
               name + ".grad_weight");
  const std::vector<float> wq = r.y.to_vector<float>();
  p.each([&](int64_t o, int64_t i, int64_t k) {
    y.add(o, wq[size_t(k)], xs[size_t(i)]);
    dx.add(i, wq[size_t(k)], ups[size_t(o)]);
  });
  if (f.has(name + ".bias")) {
    const std::vector<float> bias = f.tensor(name + ".bias").to_vector<float>();
    const size_t inside = size_t(p.conv ? p.side * p.side : 1);
    for (size_t i = 0; i < y.value.size(); ++i) y.add(int64_t(i), bias[i / inside % bias.size()], 1);
  }
  expect_close(y.tensor(), f.tensor(name + ".y"), f.rtol(), f.atol() + y.rounding(), name + ".y");
  expect_close(dx.tensor(), f.tensor(name + ".grad_x"), f.rtol(), f.atol() + dx.rounding(), name + ".grad_x");
}

TEST(LsqGolden, WeightQuantizer) {
  LOWBIT_GOLDEN_OR_SKIP(path, "vvtq/lsq_weight.safetensors");
  const GoldenFile f(path);
  ASSERT_FALSE(f.cases().empty());
  for (const auto& [name, info] : f.cases()) {
    LsqConfig c = vvtq_weight(info["nbits"]);
    const Tensor w = f.tensor(name + ".weight");
    check(c, {{"alpha", f.tensor(name + ".alpha")}}, w, f.tensor(name + ".upstream"),
          {{"y", f.tensor(name + ".wq")},
           {"x", f.tensor(name + ".grad_weight")},
           {"alpha", f.tensor(name + ".grad_alpha")}},
          f, name);
    // The published order of operations gives the stored scale and weights bit for bit.
    c.published_scale = true;
    Case published(c, {{"alpha", f.tensor(name + ".alpha")}});
    const Variable y = published.q->fake_quant(Variable(w));
    ASSERT_TRUE(y.coded());
    EXPECT_TRUE(equal_bits(y.coded()->scale, f.tensor(name + ".alpha_eff"))) << name;
    expect_close(published.q->grad_scale(Variable(w)).slice(0, 0, 1), f.tensor(name + ".g"), 1e-6, 0,
                 name + ".g");
    expect_close(y.data(), f.tensor(name + ".wq"), 0, 0, name + " (published scale)");
  }
}

TEST(LsqGolden, ActivationQuantizer) {
  LOWBIT_GOLDEN_OR_SKIP(path, "vvtq/lsq_act.safetensors");
  const GoldenFile f(path);
  ASSERT_FALSE(f.cases().empty());
  for (const auto& [name, info] : f.cases()) {
    LsqConfig c = vvtq_activation(info["nbits"], info["signed"], info["offset"]);
    Case fresh(c, {});
    fresh.value("init_state").fill(0);
    (void)fresh.q->fake_quant(Variable(f.tensor(name + ".x_init")));
    expect_close(fresh.value("alpha"), f.tensor(name + ".alpha_init"), 1e-6, 0, name + ".alpha_init");
    EXPECT_TRUE(fresh.q->initialised());

    std::map<std::string, Tensor> state{{"alpha", f.tensor(name + ".alpha")}};
    std::map<std::string, Tensor> expected{{"y", f.tensor(name + ".y")},
                                           {"x", f.tensor(name + ".grad_x")},
                                           {"alpha", f.tensor(name + ".grad_alpha")}};
    if (c.offset) {
      state["beta"] = f.tensor(name + ".beta");
      expected["beta"] = f.tensor(name + ".grad_beta");
    }
    const Tensor x = f.tensor(name + ".x");
    check(c, state, x, f.tensor(name + ".upstream"), expected, f, name);
    c.published_scale = true;
    Case published(c, state);
    const Variable y = published.q->fake_quant(Variable(x));
    ASSERT_TRUE(y.coded());
    EXPECT_TRUE(equal_bits(y.coded()->scale, f.tensor(name + ".alpha_eff"))) << name;
    expect_close(y.data(), f.tensor(name + ".y"), 0, 0, name + " (published scale)");
  }
}

TEST(LsqGolden, TiesOnRoundingBoundariesAndClipEdges) {
  LOWBIT_GOLDEN_OR_SKIP(path, "vvtq/lsq_ties.safetensors");
  const GoldenFile f(path);
  const auto cases = cases_with(f, "x");
  ASSERT_FALSE(cases.empty());
  for (const std::string& name : cases)
    check(vvtq_activation(std::stoi(name.substr(1)), has_part(name, "s"), false),
          {{"alpha", f.tensor(name + ".alpha")}}, f.tensor(name + ".x"), f.tensor(name + ".upstream"),
          {{"y", f.tensor(name + ".y")},
           {"x", f.tensor(name + ".grad_x")},
           {"alpha", f.tensor(name + ".grad_alpha")}},
          f, name);
}

TEST(LsqGolden, HeadwiseQuantizers) {
  LOWBIT_GOLDEN_OR_SKIP(path, "vvtq/lsq_headwise.safetensors");
  const GoldenFile f(path);
  ASSERT_FALSE(f.cases().empty());
  for (const auto& [name, info] : f.cases()) {
    const int64_t heads = info["heads"];
    const std::map<std::string, Tensor> state{{"alpha", f.tensor(name + ".alpha")},
                                              {"nbits", f.tensor(name + ".nbits").cast(DType::f32)}};
    std::map<std::string, Tensor> expected{{"alpha", f.tensor(name + ".grad_alpha")},
                                           {"nbits", f.tensor(name + ".grad_nbits")}};
    if (has_part(name, "act")) {
      expected["y"] = f.tensor(name + ".y"), expected["x"] = f.tensor(name + ".grad_x");
      check(headwise(vvtq_activation(4, has_part(name, "s"), false), -3, heads), state, f.tensor(name + ".x"),
            f.tensor(name + ".upstream"), expected, f, name);
    } else {
      check_layer(headwise(vvtq_weight(4), has_part(name, "lin") ? -1 : -2, heads), state, f, name, expected);
    }
  }
}

TEST(LsqGolden, LearnedBits) {
  LOWBIT_GOLDEN_OR_SKIP(path, "vvtq/lsq_learnbits.safetensors");
  const GoldenFile f(path);
  ASSERT_FALSE(f.cases().empty());
  for (const auto& [name, info] : f.cases()) {
    (void)info;
    const std::map<std::string, Tensor> state{{"alpha", f.tensor(name + ".alpha")},
                                              {"nbits", f.tensor(name + ".nbits_in")}};
    std::map<std::string, Tensor> expected{{"alpha", f.tensor(name + ".grad_alpha")},
                                           {"nbits", f.tensor(name + ".grad_nbits")}};
    LsqConfig c = has_part(name, "lin") ? vvtq_weight(4) : vvtq_activation(4, has_part(name, "s"), false);
    c.learn_bits = true;
    Case clamped(c, state);
    (void)clamped.q->fake_quant(Variable(f.tensor(name + ".x")));
    expect_close(clamped.value("nbits"), f.tensor(name + ".nbits_after"), 0, 0, name + ".nbits_after");
    if (has_part(name, "lin")) {
      check_layer(c, state, f, name, expected);
    } else {
      expected["y"] = f.tensor(name + ".y"), expected["x"] = f.tensor(name + ".grad_x");
      check(c, state, f.tensor(name + ".x"), f.tensor(name + ".upstream"), expected, f, name);
    }
  }
}

/// alpha [7] with the one value of a plain LSQ scale in the slot of `bits`.
Tensor in_slot(const Tensor& value, int bits) {
  Tensor t = Tensor::zeros({LsqQuantizer::kSlots}, DType::f32, value.device());
  t.slice(0, bits - 2, bits - 1).copy_from(value);
  return t;
}

TEST(LsqGolden, PlainLsq) {
  LOWBIT_GOLDEN_OR_SKIP(path, "vvtq/lsq_plain.safetensors");
  const GoldenFile f(path);
  const auto cases = cases_with(f, "upstream");
  ASSERT_FALSE(cases.empty());
  for (const std::string& name : cases) {
    const int bits = bits_in(name);
    const bool act = has_part(name, "act"), function = has_part(name, "FunLSQ");
    const std::string source = function ? "lin" + name.substr(name.find('.')) : name;
    LsqConfig c = lsq_plain(bits, !act, !has_part(name, "u"));
    const Tensor v = f.tensor(source + (act ? ".x" : ".weight")), alpha = f.tensor(source + ".alpha");
    Case fresh(c, {});
    fresh.value("init_state").fill(0);
    (void)fresh.q->fake_quant(Variable(v));
    expect_close(fresh.q->scale(), alpha, 1e-6, 0, name + ".alpha");
    const std::map<std::string, Tensor> state{{"alpha", in_slot(alpha, bits)}};
    std::map<std::string, Tensor> expected{{"alpha", in_slot(f.tensor(name + ".grad_alpha"), bits)}};
    if (function) {
      c.ties = TiePolicy::inclusive;  // the explicit backward masks x/a < Qn and x/a > Qp only
      expected["y"] = f.tensor(name + ".out"), expected["x"] = f.tensor(name + ".grad_weight");
      check(c, state, v, f.tensor(name + ".upstream"), expected, f, name);
    } else if (act) {
      expected["y"] = f.tensor(name + ".y"), expected["x"] = f.tensor(name + ".grad_x");
      check(c, state, v, f.tensor(name + ".upstream"), expected, f, name);
    } else {
      check_layer(c, state, f, name, expected);
    }
  }
}

TEST(LsqGolden, LeastSquaresScaleSearch) {
  LOWBIT_GOLDEN_OR_SKIP(path, "vvtq/init_mse.safetensors");
  const GoldenFile f(path);
  const auto cases = cases_with(f, "x");
  ASSERT_FALSE(cases.empty());
  for (const std::string& name : cases) {
    const Tensor x = f.tensor(name + ".x"), flag = f.tensor(name + ".signed");
    const bool is_signed = flag.cast(DType::f32).to_vector<float>()[0] != 0, offset = f.has(name + ".beta");
    const std::vector<int32_t> iterations = f.tensor(name + ".iters").to_vector<int32_t>();
    std::vector<float> alpha, beta;
    for (int n = 2; n <= 8; ++n) {
      const Levels l = Levels::of(n, is_signed);
      const ScaleFit fit = offset ? fit_scale_and_offset(x, l, name) : fit_scale(x, l, name);
      alpha.push_back(fit.scale), beta.push_back(fit.offset);
      EXPECT_LE(std::abs(fit.iterations - iterations[size_t(n - 2)]), 1) << name << ", " << n << " bits";
    }
    expect_close(Tensor::from(std::span<const float>(alpha), {7}), f.tensor(name + ".alpha"), f.rtol(),
                 f.atol(), name + ".alpha");
    if (offset)
      expect_close(Tensor::from(std::span<const float>(beta), {7}), f.tensor(name + ".beta"), f.rtol(),
                   f.atol(), name + ".beta");
  }
}

}  // namespace
}  // namespace lowbit
