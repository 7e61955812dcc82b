#include "quant/annealing.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "autograd/core/node.h"
#include "quant/scheme/scheme.h"
#include "tensor/engine/pointwise.h"

namespace lowbit {

namespace {
constexpr int kHighestBits = 7;  // first and last layer have 8

/// 1 where w lies within `range` levels of a threshold between two levels that the tensor uses; a value
/// exactly on a threshold uses both.
Tensor near_threshold(const Tensor& w, const Coded& c, float range) {
  Shape s;
  for (int d = 0; d < w.ndim(); ++d)
    s.append(!c.per_tensor() && d == w.ndim() + c.scale_axis ? w.size(d) : 1);
  const Tensor scale = c.scale.reshape(s).expand(w.shape());
  Tensor t = Tensor::empty(w.shape()), free = Tensor::empty(w.shape());  // t: in levels
  cpu::pointwise({t.mutable_view(), w.view(), scale.view()},
                 [shift = float(c.shift)](auto v, auto a) { return v / a - shift; });
  const std::vector<float> levels = t.to_vector<float>();
  const auto [least, most] = std::minmax_element(levels.begin(), levels.end());
  const float lo = std::max(float(c.lo), std::ceil(*least - 0.5f)),
              hi = std::min(float(c.hi), std::floor(*most + 0.5f));
  cpu::pointwise({free.mutable_view(), t.view()}, [range, lo, hi](auto u) {
    const auto below = std::floor(u);
    const bool inside = below >= lo && below + 1 <= hi;
    return decltype(u)(inside && std::fabs(u - below - 0.5f) <= range ? 1 : 0);
  });
  return free;
}

}  // namespace

ConfidenceAnnealing::ConfidenceAnnealing(Module& model, double range) : range_(range) {
  std::map<std::string, Variable> weights;
  for (const NamedParameter& p : model.parameters()) weights[p.name] = p.parameter->var;
  for (const auto& [slot, q] : quantizers(model)) {
    const auto w = weights.find(slot);
    if (w != weights.end() && q->bits() >= 2 && q->bits() <= kHighestBits)
      layers_.push_back({slot, q, w->second, {}, {}});
  }
}

void ConfidenceAnnealing::before_update() {
  const NoGrad off;
  for (Layer& l : layers_) {
    const Tensor w = l.weight.data();
    const Variable y = l.quantizer->apply(l.weight);
    LOWBIT_CHECK(y.coded(), usage, "annealing", l.name, ": its quantizer gives no levels");
    l.free = near_threshold(w, *y.coded(), float(range_));
    l.frozen = Tensor::empty(w.shape());
    cpu::pointwise({l.frozen.mutable_view(), l.free.view(), w.view()},
                   [](auto f, auto v) { return (1 - f) * v; });
    Tensor gradient = l.weight.grad();
    if (gradient.defined())
      cpu::pointwise({gradient.mutable_view(), gradient.view(), l.free.view()},
                     [](auto g, auto f) { return g * f; });
  }
}

void ConfidenceAnnealing::after_update() {
  for (Layer& l : layers_) {
    Tensor w = l.weight.mutable_data();
    cpu::pointwise({w.mutable_view(), w.view(), l.free.view(), l.frozen.view()},
                   [](auto v, auto f, auto kept) { return v * f + kept; });
  }
}

double ConfidenceAnnealing::free_share() const {
  double free = 0, all = 0;
  for (const Layer& l : layers_) {
    if (!l.free.defined()) continue;
    for (const float f : l.free.to_vector<float>()) free += f;
    all += double(l.free.numel());
  }
  return all > 0 ? free / all : 0;
}

std::vector<std::pair<std::string, Tensor>> ConfidenceAnnealing::masks() const {
  std::vector<std::pair<std::string, Tensor>> all;
  for (const Layer& l : layers_) all.emplace_back(l.name, l.free);
  return all;
}

}  // namespace lowbit
