#pragma once
// Values on the boundary of two levels. Up to the rounding of float sums such a value may take either level,
// and one that takes the other than the reference's moves hundreds of values behind it. These pieces find
// such values before a quantizer and move chosen ones across, so that a comparison can go on behind them with
// its tight bound.

#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "nn/core/module.h"
#include "quant/quantizer/ofq_quantizer.h"
#include "quant/scheme/scheme.h"

namespace lowbit::test {

/// Stands before a quantizer whose scales are known.
struct TieBreaker final : Transform {
  explicit TieBreaker(Quantizer* q) : quantizer(q) {}
  Quantizer* quantizer;
  bool watch = false;  ///< look for ties: two more evaluations
  std::map<int64_t, float>
      found;  ///< where another level lies within the band, and the step that leads there
  std::map<int64_t, float> moved;  ///< of those, the ones that take it

  Variable apply(const Variable& x) override {
    if (!watch && moved.empty()) return quantizer->apply(x);
    std::vector<float> v = x.data().to_vector<float>();
    if (watch) find(v, x.shape());
    for (const auto& [i, step] : moved) v[size_t(i)] += step;
    return quantizer->apply(moved.empty() ? x : Variable(Tensor::from(v, x.shape())));
  }

 private:
  void find(const std::vector<float>& v, const Shape& shape) {
    double squares = 0;
    for (const float e : v) squares += double(e) * e;
    // Float sums carry errors of a few 1e-7 of the largest terms; the values are of the order of their mean
    // square.
    const float band = float(1e-5 * std::sqrt(squares / double(v.size())));
    const auto levels = [&](float by) {
      std::vector<float> w = v;
      for (float& e : w) e += by;
      return quantizer->apply(Variable(Tensor::from(w, shape))).data().to_vector<float>();
    };
    const std::vector<float> y = levels(0), up = levels(band), down = levels(-band);
    found.clear();
    // A scale that is computed from the values moves with them a little; a level is much more.
    for (size_t i = 0; i < v.size(); ++i)
      if (std::fabs(up[i] - down[i]) > 1e-3F * (std::fabs(up[i]) + std::fabs(down[i])))
        found[int64_t(i)] = std::fabs(up[i] - y[i]) > std::fabs(down[i] - y[i]) ? band : -band;
  }
};

/// Passes on to a quantizer that another model owns.
struct Through final : Transform {
  explicit Through(Quantizer* q) : quantizer(q) {}
  Variable apply(const Variable& x) override { return quantizer->apply(x); }
  Quantizer* quantizer;
};

/// Fills the slots of the float `twin` with the quantizers of `quantized` behind tie breakers, those of
/// weights with a stored scale without one: nothing there is computed. Both must live on. Returned by slot
/// name, in model order.
inline std::vector<std::pair<std::string, std::shared_ptr<TieBreaker>>> break_ties(Module& quantized,
                                                                                   Module& twin) {
  std::map<std::string, Slot*> slots;
  for (const NamedSlot& s : twin.slots()) slots[s.name] = s.slot;
  std::vector<std::pair<std::string, std::shared_ptr<TieBreaker>>> breakers;
  for (const auto& [name, quantizer] : quantizers(quantized)) {
    if (name.ends_with(".weight") && !dynamic_cast<StatsqQuantizer*>(quantizer)) {
      slots.at(name)->set(std::make_shared<Through>(quantizer), "");
      continue;
    }
    breakers.emplace_back(name, std::make_shared<TieBreaker>(quantizer));
    slots.at(name)->set(breakers.back().second, "");
  }
  return breakers;
}

/// Moves ties of the slots that `concerns` one after another as long as that lowers error() — which runs the
/// network and compares — by a twentieth at least, until it is below `bound` or nothing helps. Returns how
/// many.
inline int64_t resolve_ties(const std::vector<std::pair<std::string, std::shared_ptr<TieBreaker>>>& breakers,
                            const std::function<bool(const std::string&)>& concerns,
                            const std::function<double()>& error, double bound) {
  std::vector<TieBreaker*> all;
  for (const auto& [name, breaker] : breakers)
    if (concerns(name)) all.push_back(breaker.get());
  const auto watched_error = [&] {
    for (TieBreaker* b : all) b->watch = true;
    const double e = error();
    for (TieBreaker* b : all) b->watch = false;
    return e;
  };
  int64_t moved = 0;
  const auto try_ties = [&](double now) {
    for (TieBreaker* b : all)
      for (const auto& [i, step] : b->found) {
        if (!b->moved.emplace(i, step).second) continue;
        if (error() < now * 0.95) return true;
        b->moved.erase(i);
      }
    return false;
  };
  double now = error();
  while (now > bound) {
    now = watched_error();
    if (!try_ties(now)) break;
    ++moved;
    now = error();
  }
  return moved;
}

}  // namespace lowbit::test
