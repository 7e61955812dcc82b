#include "quant/freezing.h"

#include <cmath>
#include <numbers>

#include "quant/ops/freezing.h"
#include "quant/ops/mean_abs.h"
#include "quant/scheme/scheme.h"

namespace lowbit {
namespace {

GroupLayout layout_of(const Tensor& w, const Coded& c, const std::string& name) {
  return in_rows(group_layout(w.shape(), c.scale_axis, c.scale.numel(), name), w.shape());
}

}  // namespace

double annealed(double begin, double end, double share) {
  return end + 0.5 * (begin - end) * (1 + std::cos(std::numbers::pi * share));
}

IterativeFreezing::IterativeFreezing(Module& model, const OscillationSettings& s) {
  std::map<std::string, Variable> weights;
  for (const NamedParameter& p : model.parameters()) weights[p.name] = p.parameter->var;
  for (const auto& [slot, q] : quantizers(model)) {
    const auto w = weights.find(slot);
    if (w == weights.end() || q->bits() < 2 || !q->trained_scale(w->second.data()).factors.defined())
      continue;
    layers_.push_back({slot, q, w->second, OscillationTracker(s), {}});
  }
}

/// Puts frozen weights on their codes at the present scale; `now` is the quantized weight.
void IterativeFreezing::pin(Layer& l, const Coded& now) {
  Tensor w = l.weight.mutable_data();
  if (!l.held.defined()) l.held = Tensor::zeros(w.shape(), DType::u8, w.device());
  const TensorsByName& state = l.tracker.state();
  if (!state.contains("frozen")) return;
  const GroupLayout g = layout_of(w, now, l.name);
  const Shape grouped{g.outer, g.groups, g.inner};
  const auto seen = [&](const Tensor& t) { return t.to(w.device()).reshape(grouped); };
  Tensor held = seen(l.held);
  freeze_pin(
      {w.reshape(grouped).mutable_view(), held.mutable_view(), seen(state.at("frozen")).view(),
       seen(state.at("frozen_code")).view(), now.scale.reshape({1, g.groups, 1}).expand(grouped).view(),
       float(now.shift), float(now.lo), float(now.hi)},
      w.device());
}

void IterativeFreezing::set_threshold(double threshold) {
  for (Layer& l : layers_) l.tracker.set_freeze_threshold(threshold);
}

void IterativeFreezing::before_step() {
  for (Layer& l : layers_) {
    const Coded c = weight_codes(*l.quantizer, l.weight);
    LOWBIT_CHECK(c.defined(), usage, "freezing", l.name, ": its quantizer gives no levels");
    pin(l, c);
    Tensor codes = c.codes.packed();  // where a weight is frozen the tracker puts the frozen code
    l.tracker.update(codes);
  }
}

/// The quantizer saw (code − w/scale)·G of a frozen weight; G·code is due.
void IterativeFreezing::before_update() {
  for (Layer& l : layers_) {
    Tensor gradient = l.weight.grad();
    const Tensor w = l.weight.data();
    if (!gradient.defined()) continue;
    const Quantizer::TrainedScale s = l.quantizer->trained_scale(w);
    const Coded c = weight_codes(*l.quantizer, l.weight);
    const GroupLayout g = layout_of(w, c, l.name);
    const int64_t rows = g.outer * g.groups;
    Tensor work = Tensor::empty({rows + g.groups}, DType::f64, w.device()), ds = s.scale.grad();
    freeze_gradient({gradient.data<float>(), w.data_const<float>(), c.scale.data_const<float>(),
                     l.held.data_const<uint8_t>(), s.factors.data_const<float>(),
                     s.index.data_const<int64_t>(), ds.defined() ? ds.data<float>() : nullptr,
                     work.data<double>(), rows, g.groups, g.inner, ds.defined() ? ds.numel() : 0},
                    w.device());
  }
}

void IterativeFreezing::after_update() {
  for (Layer& l : layers_) pin(l, weight_codes(*l.quantizer, l.weight));
}

double IterativeFreezing::frozen_share() const {
  int64_t frozen = 0, all = 0;
  for (const Layer& l : layers_) {
    all += l.weight.numel();
    if (!l.held.defined()) continue;
    for (const uint8_t m : l.held.to_vector<uint8_t>()) frozen += m;
  }
  return all ? double(frozen) / double(all) : 0;
}

TensorsByName IterativeFreezing::state() const {
  TensorsByName all;
  for (const Layer& l : layers_)
    for (const auto& [name, t] : l.tracker.state()) all[l.name + "/" + name] = t.to(Device{});
  return all;
}

void IterativeFreezing::load(const TensorsByName& state) {
  for (Layer& l : layers_) {
    TensorsByName own;
    for (const auto& [name, t] : state) {
      if (!name.starts_with(l.name + "/")) continue;
      LOWBIT_CHECK(t.shape() == l.weight.shape(), io, "resume", "what is frozen of ", l.name,
                   " has another shape (got ", t.str(), ")");
      own[name.substr(l.name.size() + 1)] = t.clone();
    }
    LOWBIT_CHECK(own.empty() || own.size() >= 6, io, "resume", "what is frozen of ", l.name,
                 " is incomplete");
    if (const auto frozen = own.find("frozen"); frozen != own.end())
      l.held = frozen->second.to(l.weight.device()).clone();
    l.tracker.load(std::move(own), {});
  }
}

}  // namespace lowbit
