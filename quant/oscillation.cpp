#include "quant/oscillation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "autograd/core/node.h"
#include "autograd/ops/reduce.h"
#include "quant/observer/statistics.h"
#include "quant/scheme/scheme.h"
#include "tensor/core/context.h"
#include "tensor/engine/pointwise.h"

namespace lowbit {

Coded weight_codes(Quantizer& q, const Variable& w) {
  struct Restore {
    Quantizer& q;
    bool training = q.training(), products = std::exchange(context().integer_products, true);
    ~Restore() { context().integer_products = products, q.train(training); }
  } restore{q};
  q.eval();
  const NoGrad off;
  const Variable y = q.fake_quant(Variable(w.data()));
  return y.coded() ? *y.coded() : Coded{};
}

void OscillationTracker::start(const Tensor& codes) {
  const Shape& s = codes.shape();
  const Device d = codes.device();
  if (state_.empty()) {
    state_ = {{"code", codes.clone()},
              {"direction", Tensor::zeros(s, DType::i8, d)},
              {"frequency", Tensor::zeros(s, DType::f32, d)}};
    if (settings_.totals) state_["total"] = Tensor::zeros(s, DType::i32, d);
    if (settings_.freeze_threshold > 0) {
      state_["frozen"] = Tensor::zeros(s, DType::u8, d);
      state_["frozen_code"] = Tensor::zeros(s, codes.dtype(), d);
      state_["average"] = codes.cast(DType::f32);
    }
  }
  for (auto& [name, t] : state_) t = t.to(d);  // a loaded state comes from the host
  const int64_t counts[] = {counts_.flips, counts_.oscillations, counts_.oscillating, counts_.all_flips};
  device_counts_ = Tensor::from(std::span<const int64_t>(counts), {4}, d);
  threshold_ = Tensor::full({1}, settings_.freeze_threshold, DType::f32, d);
  work_ = Tensor::empty({oscillation_workspace(codes.numel())}, DType::i32, d);
}

void OscillationTracker::update(Tensor& codes) {
  LOWBIT_CHECK(codes.contiguous() && (codes.dtype() == DType::i8 || codes.dtype() == DType::u8), dtype,
               "oscillation", "codes must be packed and i8 or u8 (got ", codes.str(), ")");
  if (!device_counts_.defined()) start(codes);
  Tensor& code = state_.at("code");
  LOWBIT_CHECK(
      code.shape() == codes.shape() && code.dtype() == codes.dtype() && code.device() == codes.device(),
      shape, "oscillation", "codes must keep their shape, type and device (got ", codes.str(), " after ",
      code.str(), ")");
  const auto at = [&](const char* name) {
    const auto t = state_.find(name);
    return t == state_.end() ? View{} : t->second.mutable_view();
  };
  OscillationArgs a;
  a.code = codes.mutable_view();
  a.previous = at("code"), a.direction = at("direction"), a.frequency = at("frequency");
  a.total = at("total"), a.frozen = at("frozen"), a.frozen_code = at("frozen_code");
  a.average = at("average"), a.threshold = threshold_.data_const<float>();
  a.momentum = float(settings_.momentum), a.keep = float(1 - settings_.momentum);
  a.at_average = settings_.freeze_at_average;
  a.counts = device_counts_.data<int64_t>(), a.work = work_.data<int32_t>();
  a.n = codes.numel();
  oscillation_step(a, codes.device());
}

OscillationTracker::Counts OscillationTracker::counts() const {
  if (!device_counts_.defined()) return counts_;
  const std::vector<int64_t> c = device_counts_.to_vector<int64_t>();
  return {c[0], c[1], c[2], c[3]};
}

void OscillationTracker::forget_flips() {
  counts_.all_flips = 0;
  if (device_counts_.defined()) device_counts_.slice(0, 3, 4).fill(0);
}

void OscillationTracker::set_freeze_threshold(double threshold) {
  if (threshold == settings_.freeze_threshold) return;
  settings_.freeze_threshold = threshold;
  if (threshold_.defined()) threshold_.fill(threshold);
}

Tensor threshold_distances(const Tensor& w, const Coded& c) {
  const Tensor values = w.to(Device{}).packed(), nearest = c.dequantize().to(Device{}),
               codes = c.codes.to(Device{}).cast(DType::f32).packed();
  Tensor scale = c.scale.to(Device{});
  Shape s;
  for (int d = 0; d < w.ndim(); ++d)
    s.append(!c.per_tensor() && d == w.ndim() + c.scale_axis ? w.size(d) : 1);
  scale = scale.reshape(s).expand(w.shape());
  Tensor out = Tensor::empty(w.shape());
  const float lo = float(c.lo), hi = float(c.hi);
  cpu::pointwise({out.mutable_view(), values.view(), nearest.view(), scale.view(), codes.view()},
                 [lo, hi](auto v, auto y, auto a, auto q) {
                   const auto r = (v - y) / a;
                   const bool outside = std::fabs(r) > 0.5f || (q >= hi && r > 0) || (q <= lo && r < 0);
                   return outside ? std::numeric_limits<decltype(r)>::quiet_NaN()
                                  : decltype(r)(0.5f - std::fabs(r));
                 });
  return out;
}

WeightWatch::WeightWatch(Module& model, const OscillationSettings& s) {
  std::map<std::string, Variable> weights;
  for (const NamedParameter& p : model.parameters()) weights[p.name] = p.parameter->var;
  for (const auto& [slot, q] : quantizers(model)) {
    const auto w = weights.find(slot);
    const bool quantizes = q->quant_state() == QuantState::fixed || q->quant_state() == QuantState::learned;
    if (w == weights.end() || !quantizes || !q->initialised() || !weight_codes(*q, w->second).defined())
      continue;
    const std::string name = slot.ends_with(".weight") ? slot.substr(0, slot.size() - 7) : slot;
    layers_.push_back({name, q, w->second, OscillationTracker(s)});
  }
}

void WeightWatch::step() {
  for (Watched& l : layers_) {
    Tensor codes = weight_codes(*l.quantizer, l.weight).codes.packed();
    l.tracker.update(codes);
  }
  ++steps_;
}

double WeightWatch::flip_rate() const {
  int64_t flips = 0, weights = 0;
  for (const Watched& l : layers_) flips += l.tracker.counts().flips, weights += l.weight.numel();
  return weights ? double(flips) / double(weights) : 0;
}

std::vector<WeightWatch::Layer> WeightWatch::report() {
  std::vector<Layer> all;
  for (Watched& l : layers_) {
    const int64_t n = l.weight.numel();
    const OscillationTracker::Counts c = l.tracker.counts();
    Layer r{l.name, 0, double(c.oscillating) / double(n), 0, n};
    if (steps_ > 0) {
      r.flip_rate = double(c.all_flips) / (double(n) * double(steps_));
      const Tensor& o = l.tracker.frequency();
      r.frequency = double(reduce_sum(o, (1U << o.ndim()) - 1).to_vector<float>()[0]) / double(n);
    }
    l.tracker.forget_flips();
    all.push_back(r);
  }
  steps_ = 0;
  return all;
}

WeightWatch::Layer WeightWatch::total(const std::vector<Layer>& layers) {
  Layer t{"", 0, 0, 0, 0};
  for (const Layer& l : layers) t.weights += l.weights;
  for (const Layer& l : layers) {
    const double part = double(l.weights) / double(t.weights);
    t.flip_rate += part * l.flip_rate, t.share += part * l.share, t.frequency += part * l.frequency;
  }
  return t;
}

std::vector<WeightWatch::Placement> WeightWatch::placements() const {
  std::vector<Placement> all;
  for (const Watched& l : layers_) {
    if (l.quantizer->bits() == 1) continue;  // signs: there is no level beyond which a weight is clipped
    const Coded c = weight_codes(*l.quantizer, l.weight);
    int64_t clipped = 0, zero = 0;
    const Tensor distances = threshold_distances(l.weight.data(), c);
    for (const float d : distances.to_vector<float>()) clipped += std::isnan(d);
    for (const int32_t q : c.codes.cast(DType::i32).to_vector<int32_t>()) zero += double(q) + c.shift == 0;
    const double n = double(l.weight.numel());
    float largest = 0;
    for (const float w : l.weight.data().to_vector<float>()) largest = std::max(largest, std::fabs(w));
    const double deviation = moments(l.weight.data()).deviation;
    all.push_back({l.name, distances, double(clipped) / n, double(zero) / n,
                   deviation > 0 ? double(largest) / deviation : 0});
  }
  return all;
}

TensorsByName WeightWatch::state() const {
  TensorsByName all;
  std::vector<int64_t> counts = {steps_};
  for (const Watched& l : layers_) {
    for (const auto& [name, t] : l.tracker.state()) all[l.name + "/" + name] = t.to(Device{});
    const OscillationTracker::Counts c = l.tracker.counts();
    counts.insert(counts.end(), {c.all_flips, c.flips, c.oscillations, c.oscillating});
  }
  all["counts"] = Tensor::from(std::span<const int64_t>(counts), {int64_t(counts.size())});
  return all;
}

void WeightWatch::load(const TensorsByName& state) {
  const auto counts = state.find("counts");
  LOWBIT_CHECK(counts != state.end() && counts->second.dtype() == DType::i64 &&
                   counts->second.numel() == 1 + 4 * int64_t(layers_.size()),
               io, "resume", "the oscillation trackers are those of another model");
  const std::vector<int64_t> c = counts->second.to_vector<int64_t>();
  steps_ = c[0];
  for (size_t i = 0; i < layers_.size(); ++i) {
    Watched& l = layers_[i];
    TensorsByName own;
    for (const char* name : {"code", "direction", "frequency"}) {
      const auto t = state.find(l.name + "/" + name);
      if (t == state.end()) continue;
      LOWBIT_CHECK(t->second.shape() == l.weight.shape(), io, "resume", "the oscillation tracker of ", l.name,
                   " has another shape (got ", t->second.str(), ")");
      own[name] = t->second.clone();
    }
    l.tracker.load(std::move(own), {c[2 + 4 * i], c[3 + 4 * i], c[4 + 4 * i], c[1 + 4 * i]});
  }
}

}  // namespace lowbit
