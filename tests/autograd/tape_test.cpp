// The tape itself: order, accumulation, release, recompute, memory report.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "autograd/core/node.h"
#include "tensor/core/context.h"

namespace lowbit {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

/// y = factor · x, with a log of backward calls and a draw from the generator when `noisy`.
struct ScaleNode final : Node {
  Saved x;
  float factor = 1;
  std::vector<std::string>* log = nullptr;
  std::string label;
  const char* name() const override { return "test_scale"; }
  void backward(const Tensor& gy, GradSink& gx) override {
    x.get(name(), 0);
    if (log) log->push_back(label);
    Tensor dx = gx.alloc(0);
    for (int64_t i = 0; i < dx.numel(); ++i) dx.data<float>()[i] = factor * gy.data<float>()[i];
    gx.add(0, dx);
  }
  void release() override { x.release(); }
  std::vector<Tensor> saved() const override { return {x.peek()}; }
};

Variable scaled(const Variable& x, float factor, std::vector<std::string>* log = nullptr,
                std::string label = "") {
  Tensor y = Tensor::empty(x.shape());
  for (int64_t i = 0; i < y.numel(); ++i) y.data<float>()[i] = factor * x.data().data<float>()[i];
  auto node = std::make_shared<ScaleNode>();
  node->x.set(x.data()), node->factor = factor, node->log = log, node->label = std::move(label);
  return record(std::move(y), std::move(node), {x});
}

struct SumNode final : Node {
  const char* name() const override { return "test_sum"; }
  void backward(const Tensor& gy, GradSink& gx) override { gx.add(0, gy), gx.add(1, gy); }
  void release() override {}
  std::vector<Tensor> saved() const override { return {}; }
};

Variable sum(const Variable& a, const Variable& b) {
  Tensor y = a.data().clone();
  for (int64_t i = 0; i < y.numel(); ++i) y.data<float>()[i] += b.data().data<float>()[i];
  return record(std::move(y), std::make_shared<SumNode>(), {a, b});
}

Variable leaf(std::initializer_list<float> v, bool grad = true) {
  return Variable(Tensor::from(std::span<const float>(v.begin(), v.size()), {int64_t(v.size())}), grad);
}

template <class F>
std::string error_of(F f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

const float kOnes[] = {1, 1};
Tensor ones() { return Tensor::from(std::span<const float>(kOnes), {2}); }

TEST(Tape, YoungestNodeRunsFirst) {
  std::vector<std::string> log;
  const Variable x = leaf({1, 2});
  const Variable a = scaled(x, 2, &log, "a"), b = scaled(x, 3, &log, "b"), c = scaled(a, 5, &log, "c");
  sum(b, c).backward(ones());
  EXPECT_THAT(log, ElementsAre("c", "b", "a"));
  EXPECT_THAT(x.grad().to_vector<float>(), ElementsAre(13, 13));
}

TEST(Tape, GradientsAddUpAndAreNotShared) {
  const Variable x = leaf({1, 2}), y = leaf({3, 4});
  sum(sum(x, y), x).backward(ones());
  EXPECT_THAT(x.grad().to_vector<float>(), ElementsAre(2, 2));
  EXPECT_THAT(y.grad().to_vector<float>(), ElementsAre(1, 1));
  sum(x, y).backward(ones());
  EXPECT_THAT(x.grad().to_vector<float>(), ElementsAre(3, 3));
  x.zero_grad();
  EXPECT_FALSE(x.grad().defined());
  EXPECT_THAT(y.grad().to_vector<float>(), ElementsAre(2, 2));
}

TEST(Tape, LeafWritesIntoItsArenaWindow) {
  Tensor arena = Tensor::full({6}, -7);
  const Variable x = leaf({1, 2});
  Variable(x).set_grad_buffer(arena.slice(0, 2, 4));
  scaled(x, 4).backward(ones());
  EXPECT_THAT(arena.to_vector<float>(), ElementsAre(-7, -7, 4, 4, -7, -7));
  x.zero_grad();
  sum(scaled(x, 4), scaled(x, 3)).backward(ones());
  EXPECT_THAT(arena.to_vector<float>(), ElementsAre(-7, -7, 7, 7, -7, -7));
}

TEST(Tape, ReleasedTapeSaysSo) {
  const Variable y = scaled(scaled(leaf({1, 2}), 2), 3);
  y.backward(ones(), true);
  y.backward(ones());
  EXPECT_THAT(error_of([&] { y.backward(ones()); }), HasSubstr("pass retain=true to the first backward"));
}

TEST(Tape, InPlaceModificationOfSavedInputIsNoticed) {
  Variable x = leaf({1, 2});
  const Variable y = scaled(x, 2);
  x.mutable_data().fill(0);
  EXPECT_EQ(error_of([&] { y.backward(ones()); }),
            "test_scale: saved input 0 was modified in place after it was saved (version 2, saved 1)");
}

TEST(Tape, BackwardNeedsAScalarOrAGradient) {
  const Variable x = leaf({1, 2});
  EXPECT_EQ(error_of([&] { scaled(x, 1).backward(); }),
            "backward: gy may be left out for scalars only (got [2] f32 cpu)");
  EXPECT_THAT(error_of([&] { scaled(leaf({1}, false), 1).backward(); }),
              HasSubstr("must depend on something"));
  EXPECT_THAT(error_of([&] { scaled(x, 1).backward(Tensor::zeros({3})); }),
              HasSubstr("gy must have the shape"));
}

TEST(Tape, NothingIsRecordedWithoutGradients) {
  const Variable x = leaf({1, 2});
  {
    NoGrad off;
    EXPECT_FALSE(scaled(x, 2).requires_grad());
  }
  EXPECT_TRUE(scaled(x, 2).requires_grad());
  EXPECT_FALSE(scaled(x.detach(), 2).requires_grad());
}

TEST(Tape, StraightThroughPassesTheGradient) {
  const Variable x = leaf({1.4f, 2.6f});
  const Variable y = straight_through(x, ones());
  EXPECT_TRUE(equal_bits(y.data(), ones()));
  const float g[] = {5, 6};
  y.backward(Tensor::from(std::span<const float>(g), {2}));
  EXPECT_THAT(x.grad().to_vector<float>(), ElementsAre(5, 6));
}

TEST(Tape, RecomputeGivesTheSameBitsAndKeepsLess) {
  const Variable w = leaf({3, 5});
  // A draw inside: the second run must see the same numbers.
  const auto f = [&](std::span<const Variable> v) {
    const RngKey k = context().generator.reserve(1);
    return sum(scaled(scaled(v[0], float(k.offset % 97) + 1), 2), scaled(w, 7));
  };
  const auto run = [&](bool again) {
    context().generator.set_state(11);
    const Variable x = leaf({1, 2}), in[] = {x};
    w.zero_grad();
    const Variable y = again ? recompute(f, in) : f(in);
    const size_t kept = saved_memory(y)[again ? "recompute" : "test_scale"];
    y.backward(ones());
    return std::tuple(y.data(), x.grad(), w.grad(), kept, context().generator.state());
  };
  const auto [y0, x0, w0, kept0, state0] = run(false);
  const auto [y1, x1, w1, kept1, state1] = run(true);
  EXPECT_TRUE(equal_bits(y0, y1) && equal_bits(x0, x1) && equal_bits(w0, w1));
  EXPECT_LT(kept1, kept0);
  EXPECT_EQ(state0, state1);
}

TEST(Tape, SavedMemoryCountsSharedStorageOnce) {
  const Variable x(Tensor::zeros({1000}), true);
  const auto bytes = saved_memory(sum(scaled(x, 1), scaled(x, 2)));
  EXPECT_EQ(bytes.at("test_scale"), 4000u);
  EXPECT_EQ(bytes.at("test_sum"), 0u);
}

TEST(Tape, VeryLongTapesAreFreedWithoutRecursion) {
  const Variable x = leaf({1, 2});
  Variable y = x;
  for (int i = 0; i < 200000; ++i) y = scaled(y, 1);
  { const Variable dropped = y; }
  y.backward(ones());
  EXPECT_THAT(x.grad().to_vector<float>(), ElementsAre(1, 1));
  Variable z = x;
  for (int i = 0; i < 200000; ++i) z = scaled(z, 1);
  z = Variable{};
}

TEST(Tape, CheckFiniteNamesTheFirstOffender) {
  context().check_finite = true;
  const std::string text = error_of([] { scaled(leaf({1, 3e38f}), 10); });
  context().check_finite = false;
  EXPECT_EQ(text, "test_scale: 1 non-finite of 2 values, first at [1]");
}

}  // namespace
}  // namespace lowbit
