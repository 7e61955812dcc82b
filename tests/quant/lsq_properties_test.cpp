#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <utility>

#include "autograd/core/node.h"
#include "autograd/ops/softmax.h"
#include "quant/quantizer/lsq_quantizer.h"
#include "tensor/core/context.h"
#include "tests/support/golden.h"

namespace lowbit {
namespace {

/// f(quantizer, x) for every bit-width, sign and offset, and for the sizes around the lanes and chunks.
void sweep(const std::function<void(LsqQuantizer&, const Tensor&, const std::string&)>& f) {
  for (int bits = 2; bits <= 8; ++bits)
    for (const bool is_signed : {true, false})
      for (const bool offset : {false, true})
        for (const int64_t n : {1, 33, 4097}) {
          LsqQuantizer q(vvtq_activation(bits, is_signed, offset));
          const Tensor x = test::fill("x", {n}, is_signed ? 0 : 0.4, 1);
          q.set_quant_state(QuantState::learned, "test");
          q.initialise(x);
          if (offset) q.state().at("beta").fill(-0.07);
          f(q, x, str_cat(bits, is_signed ? " signed" : " unsigned", offset ? " offset " : " ", n));
        }
}

TEST(LsqProperties, CodesStayInRange) {
  sweep([](LsqQuantizer& q, const Tensor& x, const std::string& what) {
    const Variable y = q.fake_quant(Variable(x));
    ASSERT_TRUE(y.coded()) << what;
    const Coded& c = *y.coded();
    const Levels l = Levels::of(q.bits(), q.spec().is_signed);
    EXPECT_EQ(c.lo, 0) << what;
    EXPECT_EQ(c.hi, l.hi - l.lo) << what;
    for (uint8_t v : c.codes.to_vector<uint8_t>()) ASSERT_TRUE(v >= c.lo && v <= c.hi) << what;
    for (int32_t v : q.codes(x).to_vector<int32_t>()) ASSERT_TRUE(v >= l.lo && v <= l.hi) << what;
  });
}

TEST(LsqProperties, CodesAndFloatsHaveTheSameBits) {
  sweep([](LsqQuantizer& q, const Tensor& x, const std::string& what) {
    const Tensor coded = q.fake_quant(Variable(x)).data();
    context().integer_products = false;
    const Variable floats = q.fake_quant(Variable(x));
    context().integer_products = true;
    EXPECT_FALSE(floats.coded()) << what;
    EXPECT_TRUE(equal_bits(coded, floats.data())) << what;
  });
}

TEST(LsqProperties, QuantizingTwiceChangesNothing) {
  sweep([](LsqQuantizer& q, const Tensor& x, const std::string& what) {
    const Tensor once = q.fake_quant(Variable(x)).data();
    EXPECT_TRUE(equal_bits(q.fake_quant(Variable(once)).data(), once)) << what;
  });
}

TEST(LsqProperties, IsMonotone) {
  sweep([](LsqQuantizer& q, const Tensor& x, const std::string& what) {
    std::vector<float> v = x.to_vector<float>();
    std::sort(v.begin(), v.end());
    const auto y =
        q.fake_quant(Variable(Tensor::from(std::span<const float>(v), x.shape()))).data().to_vector<float>();
    EXPECT_TRUE(std::is_sorted(y.begin(), y.end())) << what;
  });
}

TEST(LsqProperties, ScalesWithPowersOfTwo) {
  sweep([](LsqQuantizer& q, const Tensor& x, const std::string& what) {
    const auto scaled = [](Tensor t, float by) {
      t = t.clone();
      float* v = t.data<float>();
      for (int64_t i = 0; i < t.numel(); ++i) v[i] *= by;
      return t;
    };
    const Tensor y = q.fake_quant(Variable(x)).data();
    auto state = q.state();
    state.at("alpha").copy_from(scaled(state.at("alpha"), 8));
    if (state.count("beta")) state.at("beta").copy_from(scaled(state.at("beta"), 8));
    EXPECT_TRUE(equal_bits(q.fake_quant(Variable(scaled(x, 8))).data(), scaled(y, 8))) << what;
  });
}

TEST(LsqQuantizer, OffIsIdentityAndTransitionsAreKept) {
  LsqQuantizer q(vvtq_activation(4, true, false));
  const Variable x(test::fill("x", {8}, 0, 1));
  EXPECT_EQ(q.apply(x).impl(), x.impl());
  q.set_quant_state(QuantState::learned, "scheme vvtq");
  q.set_quant_state(QuantState::learned, "again");
  (void)q.apply(x);
  ASSERT_EQ(q.history().size(), 2u);
  EXPECT_EQ(q.history()[0], "off -> learned: scheme vvtq");
  EXPECT_EQ(q.history()[1], "initialised from [8] f32 cpu");
}

TEST(LsqQuantizer, ForwardIsPureAfterTheFirstBatch) {
  LsqQuantizer q(vvtq_activation(4, true, false));
  q.set_quant_state(QuantState::learned, "test");
  (void)q.apply(Variable(test::fill("first", {64}, 0, 1)));
  std::map<std::string, uint32_t> before;
  for (const auto& [name, t] : q.state()) before[name] = t.version();
  (void)q.apply(Variable(test::fill("second", {64}, 0, 3)));
  for (const auto& [name, t] : q.state()) EXPECT_EQ(t.version(), before[name]) << name;
}

TEST(LsqQuantizer, RecomputationGivesTheSameGradients) {
  LsqQuantizer q(vvtq_activation(3, true, true));
  q.set_quant_state(QuantState::learned, "test");
  const Tensor x = test::fill("x", {4, 40}, 0, 1), gy = test::fill("gy", {4, 40}, 0, 1);
  const auto gradients = [&](bool again) {
    const Variable in(x, true);
    const Variable inputs[] = {in};
    const auto f = [&](std::span<const Variable> v) { return q.apply(v[0]); };
    const Variable y = again ? recompute(f, inputs) : f(inputs);
    y.backward(gy);
    std::vector<Tensor> g{in.grad()};
    for (NamedParameter& p : q.parameters()) {
      if (p.parameter->var.grad().defined()) g.push_back(p.parameter->var.grad());
      p.parameter->var.zero_grad();
    }
    return g;
  };
  const auto a = gradients(false), b = gradients(true);
  ASSERT_EQ(a.size(), 3u);  // x, alpha, beta
  for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(equal_bits(a[i], b[i])) << i;
}

/// The gradient factor of head-wise probabilities is known without a look at them.
TEST(LsqQuantizer, RowsOfProbabilitiesSumToOne) {
  const Shape shape{2, 3, 7, 7};
  const auto gradient = [&](const Variable& p) {
    LsqQuantizer q(headwise(vvtq_activation(4, false, false), -3, 3));
    q.set_quant_state(QuantState::learned, "test");
    q.set_scale(Tensor::full({3}, 0.05));
    q.fake_quant(p).backward(test::fill("gy", shape, 0, 1));
    return q.parameters()[1].parameter->var.grad();
  };
  const Variable p = softmax(Variable(test::fill("x", shape, 0, 3), true));
  EXPECT_TRUE(rows_sum_to_one(p));
  EXPECT_FALSE(rows_sum_to_one(p.detach()));
  test::expect_close(gradient(p), gradient(p.detach()), 1e-6, 0, "alpha");
  const Variable none = softmax(Variable(Tensor::zeros({1, 3, 2, 0}), true));
  LsqQuantizer q(headwise(vvtq_activation(4, false, false), -3, 3));
  q.set_quant_state(QuantState::learned, "test");
  q.set_scale(Tensor::full({3}, 0.05));
  EXPECT_EQ(q.fake_quant(none).numel(), 0);
}

TEST(LsqQuantizer, FixedScalesGetNoGradient) {
  LsqQuantizer q(vvtq_weight(4));
  q.set_quant_state(QuantState::fixed, "test");
  const Variable w(test::fill("w", {16, 8}, 0, 1), true);
  q.apply(w).backward(Tensor::full({16, 8}, 1));
  EXPECT_TRUE(w.grad().defined());
  for (NamedParameter& p : q.parameters()) EXPECT_FALSE(p.parameter->var.requires_grad()) << p.name;
}

TEST(LsqQuantizer, AllZeroValuesAreQuantizedToZero) {
  for (const LsqConfig& c : {vvtq_weight(4), vvtq_activation(2, false, true), lsq_plain(4, true, true),
                             lsq_plus(3, true, true), lsq_plus(3, false, true)}) {
    LsqQuantizer q(c);
    q.set_quant_state(QuantState::learned, "test");
    const Variable w(Tensor::zeros({4, 8}), true);
    const Variable y = q.apply(w);
    for (float v : y.data().to_vector<float>()) EXPECT_EQ(v, 0);
    y.backward(Tensor::full({4, 8}, 1));
    for (NamedParameter& p : q.parameters()) {
      if (!p.parameter->var.grad().defined()) continue;
      for (float g : p.parameter->var.grad().to_vector<float>()) EXPECT_TRUE(std::isfinite(g)) << p.name;
    }
  }
}

std::string message(const std::function<void()>& f, ErrorKind kind) {
  try {
    f();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), kind);
    return e.what();
  }
  return "";
}

TEST(LsqQuantizer, BadValuesNameTheQuantizer) {
  LsqQuantizer q(vvtq_weight(4));
  q.set_label("blocks.3.mlp.fc1.weight");
  q.set_quant_state(QuantState::learned, "test");
  EXPECT_EQ(message(
                [&] {
                  (void)q.apply(Variable(Tensor::full({2, 3}, INFINITY)));
                },
                ErrorKind::numeric),
            "blocks.3.mlp.fc1.weight: the scale that fits the values must be finite (got inf)");
  q.initialise(test::fill("w", {2, 3}, 0, 1));
  EXPECT_EQ(message(
                [&] {
                  (void)q.apply(Variable(Tensor::full({2, 3}, NAN)));
                },
                ErrorKind::numeric),
            "blocks.3.mlp.fc1.weight: x must be finite (got 6 non-finite of 6 values)");
  q.state().at("alpha").fill(NAN);
  EXPECT_EQ(message(
                [&] {
                  (void)q.apply(Variable(Tensor::full({2, 3}, 1)));
                },
                ErrorKind::numeric),
            "blocks.3.mlp.fc1.weight: scale must be positive and finite (got nan for group 0)");
  EXPECT_EQ(message([] { LsqQuantizer bad(vvtq_weight(9)); }, ErrorKind::usage),
            "quantizer: bits must lie in [2, 8] (got 9)");
}

TEST(LsqQuantizer, SearchMethodsReadAndWriteTheScale) {
  LsqQuantizer q(vvtq_weight(3));
  q.set_scale(Tensor::scalar(0.25));
  EXPECT_TRUE(q.initialised());
  EXPECT_EQ(q.scale().item<float>(), 0.25f);
  const float x[] = {-1.4f, -0.3f, 0.6f, 3.f};
  EXPECT_EQ(q.codes(Tensor::from(x, {4})).to_vector<int32_t>(), (std::vector<int32_t>{-4, -1, 2, 3}));
  EXPECT_EQ(q.clipped_share(Tensor::from(x, {4})), 0.5);  // u = -5.6, -1.2, 2.4, 12
}

}  // namespace
}  // namespace lowbit
