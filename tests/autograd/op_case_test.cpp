// The harness itself: every derived check must fail for the defect it is there to find.

#include "tests/support/op_case.h"

#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include <functional>

#include "autograd/core/node.h"
#include "tensor/core/thread_pool.h"

namespace lowbit::test {
namespace {

using Kernel = std::function<void(const float* from, float* to, int64_t n)>;

/// y = 2x in float or double, with hooks where a defect can be planted.
struct Doubler {
  double gradient = 2;                 ///< what backward multiplies with
  Kernel extra = {};                   ///< runs after the float forward, on its buffers
  bool assumes_packed = false;         ///< ignores strides
  bool backward_ignores_wants = true;  ///< false: returns another value when input 1 wants nothing

  Variable operator()(const Variable& a, const Variable& b) const;
};

struct DoublerNode final : Node {
  Doubler op;
  const char* name() const override { return "doubler"; }
  void backward(const Tensor& gy, GradSink& gx) override {
    for (int i : {0, 1}) {
      if (!gx.wants(i)) continue;
      Tensor d = gx.alloc(i);
      const double factor = op.gradient * (op.backward_ignores_wants || gx.wants(1 - i) ? 1 : 2);
      if (gy.dtype() == DType::f64)
        for (int64_t k = 0; k < d.numel(); ++k) d.data<double>()[k] = factor * gy.data_const<double>()[k];
      else
        for (int64_t k = 0; k < d.numel(); ++k)
          d.data<float>()[k] = float(factor) * gy.data_const<float>()[k];
      gx.add(i, d);
    }
  }
  void release() override {}
  std::vector<Tensor> saved() const override { return {}; }
};

/// y = 2a + 2b
Variable Doubler::operator()(const Variable& a, const Variable& b) const {
  const Tensor pa = assumes_packed ? a.data() : a.data().packed(), pb = b.data().packed();
  Tensor y = Tensor::empty(a.shape(), a.dtype());
  const int64_t n = y.numel();
  if (a.dtype() == DType::f64) {
    for (int64_t i = 0; i < n; ++i)
      y.data<double>()[i] = 2 * (pa.data_const<double>()[i] + pb.data_const<double>()[i]);
  } else {
    const float *x0 = pa.data_const<float>(), *x1 = pb.data_const<float>();
    float* to = y.data<float>();
    for (int64_t i = 0; i < n; ++i) to[i] = 2 * (x0[i] + x1[i]);
    if (extra) extra(x0, to, n);
  }
  auto node = std::make_shared<DoublerNode>();
  node->op = *this;
  return record(y, node, {a, b});
}

std::vector<InputSpec> inputs(Shape s) { return {{.name = "a", .shape = s}, {.name = "b", .shape = s}}; }

OpCase with(const Doubler& op) {
  return {.name = "doubler",
          .inputs = inputs({6, 9}),
          .fn = [op](std::span<const Variable> v) { return op(v[0], v[1]); },
          .sizes = [](int64_t n) { return inputs({n}); }};
}

/// Messages of the failures that a property reports for a case.
std::vector<std::string> failures(const std::string& property, const OpCase& c) {
  for (const Property& p : op_properties()) {
    if (p.name != property) continue;
    EXPECT_TRUE(p.applies(c));
    testing::TestPartResultArray results;
    {
      testing::ScopedFakeTestPartResultReporter reporter(
          testing::ScopedFakeTestPartResultReporter::INTERCEPT_ONLY_CURRENT_THREAD, &results);
      p.check(c);
    }
    std::vector<std::string> text;
    for (int i = 0; i < results.size(); ++i)
      if (results.GetTestPartResult(i).failed()) text.push_back(results.GetTestPartResult(i).message());
    return text;
  }
  ADD_FAILURE() << "no property " << property;
  return {};
}

TEST(OpCaseHarness, AcceptsACorrectOp) {
  const OpCase c = with({});
  for (const Property& p : op_properties()) {
    if (!p.applies(c)) continue;
    EXPECT_EQ(failures(p.name, c), std::vector<std::string>{}) << p.name;
  }
}

TEST(OpCaseHarness, FindsAWrongGradient) {
  EXPECT_FALSE(failures("GradientMatchesFiniteDifference", with({.gradient = 2.0001})).empty());
}

TEST(OpCaseHarness, FindsAGradientThatIsNotTheIdentity) {
  OpCase c = with({.gradient = 1});
  c.gradient = Gradient::identity;
  EXPECT_TRUE(failures("GradientIsIdentity", c).empty());
  c = with({.gradient = 1.0000001});
  c.gradient = Gradient::identity;
  EXPECT_FALSE(failures("GradientIsIdentity", c).empty());
}

TEST(OpCaseHarness, FindsAWrongSurrogateGradient) {
  OpCase c = with({});
  c.gradient = Gradient::frozen_rounding;
  c.surrogate = [](std::span<const Tensor>) { return Function(with({}).fn); };
  EXPECT_TRUE(failures("GradientMatchesFrozenRounding", c).empty());
  c.fn = with({.gradient = 2.001}).fn;
  EXPECT_FALSE(failures("GradientMatchesFrozenRounding", c).empty());
}

TEST(OpCaseHarness, FindsWhatDependsOnOldMemory) {
  const OpCase c = with({.extra = [](const float*, float* y, int64_t n) {
    const Tensor scratch = Tensor::empty({n});  // read without having been written
    y[0] = scratch.data_const<float>()[n - 1];
  }});
  EXPECT_FALSE(failures("RepeatsOnPoisonedMemory", c).empty());
}

TEST(OpCaseHarness, FindsDependenceOnTheThreadCount) {
  const OpCase c = with({.extra = [](const float*, float* y, int64_t) { y[3] += 1e-6f * float(threads()); }});
  const std::vector<std::string> text = failures("ThreadCountDoesNotMatter", c);
  ASSERT_FALSE(text.empty());
  EXPECT_NE(text[0].find("1 of 54 elements differ; worst at [0, 3]"), std::string::npos) << text[0];
  EXPECT_NE(text[0].find(" ulp"), std::string::npos) << text[0];
  EXPECT_NE(text[0].find("--gtest_filter='OpCaseHarness.FindsDependenceOnTheThreadCount'"),
            std::string::npos);
}

TEST(OpCaseHarness, FindsIgnoredStrides) {
  EXPECT_FALSE(failures("LayoutDoesNotMatter", with({.assumes_packed = true})).empty());
}

TEST(OpCaseHarness, FindsWritesBehindAndBeforeABuffer) {
  EXPECT_FALSE(
      failures("StaysInsideItsBuffers", with({.extra = [](const float*, float* y, int64_t n) { y[n] = 1; }}))
          .empty());
  EXPECT_FALSE(
      failures("StaysInsideItsBuffers", with({.extra = [](const float*, float* y, int64_t) { y[-1] = 1; }}))
          .empty());
}

TEST(OpCaseHarness, FindsAWriteToAnInput) {
  const OpCase c = with({.extra = [](const float* x, float*, int64_t) { const_cast<float*>(x)[2] += 1; }});
  EXPECT_FALSE(failures("StaysInsideItsBuffers", c).empty());
}

TEST(OpCaseHarness, FindsGradientsThatDependOnWhoAsks) {
  EXPECT_FALSE(failures("PartialGradientsAgree", with({.backward_ignores_wants = false})).empty());
}

TEST(OpCaseHarness, FindsAnUninformativeCase) {
  const OpCase c = with({.extra = [](const float*, float* y, int64_t n) { std::fill(y, y + n, 0.f); }});
  EXPECT_FALSE(failures("IsNotTrivial", c).empty());
}

TEST(OpCaseHarness, FindsASizeThatFails) {
  const OpCase c = with({.extra = [](const float*, float* y, int64_t n) {
    if (n == 33) y[32] += 1;
  }});
  EXPECT_FALSE(failures("HandlesSizes", c).empty());
  EXPECT_TRUE(failures("RepeatsOnPoisonedMemory", c).empty());
}

TEST(OpCaseHarness, FindsAnotherErrorText) {
  OpCase c = with({});
  c.misuse = {{"text", [] { fail(ErrorKind::value, "doubler", "is odd"); }, "doubler: is even"}};
  EXPECT_EQ(failures("RejectsMisuse", c).size(), 1u);
  c.misuse = {{"nothing", [] {}, "doubler: is even"}};
  EXPECT_EQ(failures("RejectsMisuse", c).size(), 1u);
}

}  // namespace
}  // namespace lowbit::test
