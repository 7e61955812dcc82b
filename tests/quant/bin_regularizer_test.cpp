// bin_regularizer as an op, with bins and levels frozen as the gradient's oracle.

#include "quant/ops/bin_regularizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "autograd/core/node.h"
#include "tests/support/op_case.h"

namespace lowbit::test {
namespace {

struct Setup {
  BinRegularizerSettings s;
  std::vector<InputSpec> inputs(const Shape& w) const {
    return {{.name = "w", .shape = w, .lo = -1.2, .hi = 1.2},
            {.name = "scale", .shape = {3}, .lo = 0.2, .hi = 0.3}};
  }
  /// Every u keeps clear of the edges and of rounding boundaries.
  void prepare(std::vector<Tensor>& in) const {
    float* w = in[0].data<float>();
    const double a = in[1].data_const<float>()[s.slot];
    for (int64_t i = 0; i < in[0].numel(); ++i) {
      double u = w[i] / a;
      const double nearest = std::nearbyint(2 * u) / 2;
      if (std::fabs(u - nearest) < 0.01) u = nearest + (u < nearest ? -0.01 : 0.01);
      w[i] = float(u * a);
    }
  }
  /// R by its definition, levels and bins held at the base point; the scale moves by g.
  Function surrogate(std::span<const Tensor> base) const {
    const BinRegularizerSettings k = s;
    const auto w0 = base[0].to_vector<double>(), s0 = base[1].to_vector<double>();
    const double a0 = s0[size_t(k.slot)];
    std::vector<double> q;
    for (double w : w0)
      q.push_back(std::nearbyint(std::clamp(w / a0, double(k.levels.lo), double(k.levels.hi))));
    return [=](std::span<const Variable> in) {
      const auto w = in[0].data().to_vector<double>();
      const double a = a0 + k.grad_scale * (in[1].data().to_vector<double>()[size_t(k.slot)] - a0);
      std::map<double, std::vector<double>> bins;
      double r = 0;
      for (size_t i = 0; i < w.size(); ++i) {
        const double wc = std::clamp(w[i] / a, double(k.levels.lo), double(k.levels.hi)) * a;
        r += (q[i] * a0 - wc) * (q[i] * a0 - wc) / double(w.size());
        bins[q[i]].push_back(wc);
      }
      for (const auto& [level, members] : bins) {
        if (members.size() < 2) continue;
        double mean = 0;
        for (double v : members) mean += v / double(members.size());
        for (double v : members) r += (v - mean) * (v - mean) / double(members.size() - 1);
      }
      return Variable(Tensor::full({1}, r, DType::f64));
    };
  }
};

OpCase make_case(const std::string& name, const Setup& k, const Shape& w) {
  OpCase c;
  c.name = name;
  c.inputs = k.inputs(w);
  c.fn = [k](std::span<const Variable> v) { return bin_regularizer(v[0], v[1], k.s); };
  c.gradient = Gradient::frozen_rounding;
  c.prepare = [k](std::vector<Tensor>& in) { k.prepare(in); };
  c.surrogate = [k](std::span<const Tensor> base) { return k.surrogate(base); };
  return c;
}

std::vector<OpCase> cases() {
  Setup k;
  k.s = {.levels = Levels::of(3, true), .slot = 1, .membership = MembershipTest::exact};
  OpCase plain = make_case("w3", k, {11, 13});
  plain.sizes = [k](int64_t n) { return k.inputs({n}); };
  plain.perf.inputs = k.inputs({768, 192});
  const Variable w(Tensor::full({4}, 0.5)), s(Tensor::full({3}, 0.1)), wide(Tensor::full({3}, 1, DType::f64));
  plain.misuse = {{"slot", [=] { (void)bin_regularizer(w, s, {.levels = {}, .slot = 3}); },
                   "bin_regularizer: the slot must name a scale (got 3 of [3] f32 cpu)"},
                  {"dtype", [=] { (void)bin_regularizer(w, wide, {}); },
                   "bin_regularizer: w and scale must be f32 or f64 (got w=[4] f32 cpu, scale=[3] f64 cpu)"},
                  {"empty", [=] { (void)bin_regularizer(Variable(Tensor::zeros({0})), s, {}); },
                   "bin_regularizer: w must have elements (got [0] f32 cpu)"}};
  k.s.grad_scale = 0.1;
  k.s.levels = Levels::of(2, true);
  const OpCase scaled = make_case("w2_grad_scale", k, {5, 3, 7});
  k.s.membership = MembershipTest::published;  // levels −2 … 1 always pass the test
  k.s.published_scale = false;
  const OpCase published = make_case("w2_published", k, {33, 5});
  return {plain, scaled, published};
}

const bool registered = register_op_cases("BinRegularizer", cases());

}  // namespace
}  // namespace lowbit::test
