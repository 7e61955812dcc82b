#include "quant/freezing.h"

#include <cmath>
#include <numbers>

#include "quant/scheme/scheme.h"

namespace lowbit {
namespace {

constexpr float kInside = 0.25f;  ///< of a level, for the outermost codes

/// Group of element i of a packed weight, whose scales lie along one dimension.
struct Groups {
  int64_t inner, count;
  Groups(const Shape& s, const Coded& c) : inner(s.numel()), count(1) {
    if (c.per_tensor()) return;
    const int axis = s.ndim() + c.scale_axis;
    inner = 1;
    for (int d = axis + 1; d < s.ndim(); ++d) inner *= s[d];
    count = s[axis];
  }
  size_t of(int64_t i) const { return size_t(i / inner % count); }
};

}  // namespace

double annealed(double begin, double end, double share) {
  return end + 0.5 * (begin - end) * (1 + std::cos(std::numbers::pi * share));
}

IterativeFreezing::IterativeFreezing(Module& model, const OscillationSettings& s) {
  std::map<std::string, Variable> weights;
  for (const NamedParameter& p : model.parameters()) weights[p.name] = p.parameter->var;
  for (const auto& [slot, q] : quantizers(model)) {
    const auto w = weights.find(slot);
    if (w == weights.end() || q->bits() < 2 || q->trained_scale(w->second.data()).factors.empty()) continue;
    layers_.push_back({slot, q, w->second, OscillationTracker(s), {}});
  }
}

/// Puts frozen weights on their codes at the present scale.
void IterativeFreezing::pin(Layer& l) {
  const TensorsByName& state = l.tracker.state();
  const auto frozen = state.find("frozen");
  if (frozen == state.end()) return;
  l.held = frozen->second.clone();
  const uint8_t* const mask = l.held.data_const<uint8_t>();
  const int64_t n = l.held.numel();
  if (std::find(mask, mask + n, uint8_t(1)) == mask + n) return;
  const Coded c = weight_codes(*l.quantizer, l.weight);
  const Groups groups(l.weight.shape(), c);
  const std::vector<float> scale = c.scale.to(Device{}).to_vector<float>();
  const std::vector<int32_t> code = state.at("frozen_code").cast(DType::i32).to_vector<int32_t>();
  Tensor w = l.weight.data().to(Device{}).packed();
  float* const value = w.data<float>();
  for (int64_t i = 0; i < n; ++i) {
    if (!mask[i]) continue;
    const int32_t k = code[size_t(i)];
    const float inside = k == c.hi ? -kInside : (k == c.lo ? kInside : 0);
    value[i] = (float(k) + float(c.shift) + inside) * scale[groups.of(i)];
  }
  l.weight.mutable_data().copy_from(w);
}

void IterativeFreezing::before_step(double threshold) {
  for (Layer& l : layers_) {
    pin(l);
    Tensor codes = weight_codes(*l.quantizer, l.weight).codes.to(Device{}).packed();
    l.tracker.set_freeze_threshold(threshold);
    l.tracker.update(codes);
  }
}

/// The quantizer saw (code − w/scale)·G of a frozen weight; G·code is due.
void IterativeFreezing::add_scale_gradient(const Layer& l) const {
  const Quantizer::TrainedScale s = l.quantizer->trained_scale(l.weight.data());
  if (!s.scale.grad().defined()) return;
  const Coded c = weight_codes(*l.quantizer, l.weight);
  const Groups groups(l.weight.shape(), c);
  const std::vector<float> scale = c.scale.to(Device{}).to_vector<float>(),
                           w = l.weight.data().to_vector<float>(), g = l.weight.grad().to_vector<float>();
  const uint8_t* const mask = l.held.data_const<uint8_t>();
  std::vector<double> sum(size_t(groups.count));
  for (size_t i = 0; i < w.size(); ++i)
    if (mask[i]) sum[groups.of(int64_t(i))] += double(g[i]) * double(w[i] / scale[groups.of(int64_t(i))]);
  Tensor gradient = s.scale.grad();
  std::vector<float> values = gradient.to_vector<float>();
  for (size_t k = 0; k < sum.size(); ++k) values[size_t(s.index[k])] += float(double(s.factors[k]) * sum[k]);
  gradient.copy_from(Tensor::from(std::span<const float>(values), gradient.shape()));
}

void IterativeFreezing::before_update() {
  for (Layer& l : layers_) {
    Tensor gradient = l.weight.grad();
    if (!l.held.defined() || !gradient.defined()) continue;
    add_scale_gradient(l);
    const uint8_t* const mask = l.held.data_const<uint8_t>();
    std::vector<float> values = gradient.to_vector<float>();
    for (size_t i = 0; i < values.size(); ++i)
      if (mask[i]) values[i] = 0;
    gradient.copy_from(Tensor::from(std::span<const float>(values), gradient.shape()));
  }
}

void IterativeFreezing::after_update() {
  for (Layer& l : layers_) pin(l);
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
    for (const auto& [name, t] : l.tracker.state()) all[l.name + "/" + name] = t;
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
    if (const auto frozen = own.find("frozen"); frozen != own.end()) l.held = frozen->second.clone();
    l.tracker.load(std::move(own));
  }
}

}  // namespace lowbit
