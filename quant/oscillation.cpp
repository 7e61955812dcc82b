#include "quant/oscillation.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <map>

#include "autograd/core/node.h"
#include "quant/observer/statistics.h"
#include "quant/scheme/scheme.h"
#include "tensor/core/context.h"
#include "tensor/core/thread_pool.h"
#include "tensor/engine/pointwise.h"
#include "tensor/engine/reduce.h"

namespace lowbit {
namespace {

using Counts = OscillationTracker::Counts;
constexpr int64_t kBlock = 1 << 16;  // counts of a block fit 32 bits

template <class C>
struct Pass {
  C* code;
  C* previous;
  int8_t* direction;
  float* frequency;
  float momentum, keep;
  int32_t* total;  // null: not counted
  // Freezing, see OscillationSettings; frozen is null without it.
  uint8_t* frozen;
  C* frozen_code;
  float* average;
  float threshold;
  bool at_average;

  Counts count(int64_t begin, int64_t end) const {
    // Bytes may alias anything: the loop is vectorised only when it is told that these do not.
    const C* __restrict x = code;
    C* __restrict prev = previous;
    int8_t* __restrict dir = direction;
    float* __restrict freq = frequency;
    const float m = momentum, k = keep;
    int32_t flips = 0, oscillations = 0, oscillating = 0;
#pragma omp simd reduction(+ : flips, oscillations, oscillating)
    for (int64_t i = begin; i < end; ++i) {
      const int32_t d = int32_t(prev[i] > x[i]) - int32_t(prev[i] < x[i]), before = dir[i];
      const int32_t osc = before * d == -1 ? 1 : 0;
      const float o = m * float(osc) + k * freq[i];
      freq[i] = o;
      dir[i] = int8_t(d != 0 ? d : before);
      prev[i] = x[i];
      flips += d != 0 ? 1 : 0, oscillations += osc, oscillating += o > kOscillating ? 1 : 0;
    }
    return {flips, oscillations, oscillating};
  }
  void add_totals(int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; ++i)
      total[i] += direction[i] * ((previous[i] > code[i]) - (previous[i] < code[i])) == -1;
  }
  void hold(int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; ++i)
      if (frozen[i]) code[i] = frozen_code[i];
  }
  void freeze(int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; ++i) {
      if (threshold > 0 && frequency[i] > threshold) {
        frozen[i] = 1;
        frozen_code[i] = at_average ? C(math::rint(average[i])) : code[i];
      }
      average[i] = momentum * float(code[i]) + keep * average[i];
    }
  }
  Counts run(int64_t n) const {
    std::atomic<int64_t> flips = 0, oscillations = 0, oscillating = 0;
    parallel_for((n + kBlock - 1) / kBlock, 1, [&](int64_t first, int64_t last) {
      for (int64_t b = first; b < last; ++b) {
        const int64_t begin = b * kBlock, end = std::min(n, begin + kBlock);
        if (frozen) hold(begin, end);
        if (total) add_totals(begin, end);
        const Counts c = count(begin, end);
        if (frozen) freeze(begin, end);
        flips += c.flips, oscillations += c.oscillations, oscillating += c.oscillating;
      }
    });
    return {flips, oscillations, oscillating};
  }
};

}  // namespace

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
  state_ = {
      {"code", codes.clone()}, {"direction", Tensor::zeros(s, DType::i8)}, {"frequency", Tensor::zeros(s)}};
  if (settings_.totals) state_["total"] = Tensor::zeros(s, DType::i32);
  if (settings_.freeze_threshold <= 0) return;
  state_["frozen"] = Tensor::zeros(s, DType::u8);
  state_["frozen_code"] = Tensor::zeros(s, codes.dtype());
  state_["average"] = codes.cast(DType::f32);
}

Counts OscillationTracker::update(Tensor& codes) {
  LOWBIT_CHECK(codes.contiguous() && (codes.dtype() == DType::i8 || codes.dtype() == DType::u8), dtype,
               "oscillation", "codes must be packed and i8 or u8 (got ", codes.str(), ")");
  if (state_.empty()) start(codes);
  LOWBIT_CHECK(state_.at("code").shape() == codes.shape() && state_.at("code").dtype() == codes.dtype(),
               shape, "oscillation", "codes must keep their shape and type (got ", codes.str(), " after ",
               state_.at("code").str(), ")");
  const auto run = [&]<class C>(C) {
    const bool freezing = state_.count("frozen") != 0;
    const float m = float(settings_.momentum), keep = float(1 - settings_.momentum);
    return Pass<C>{codes.data<C>(),
                   state_.at("code").data<C>(),
                   state_.at("direction").data<int8_t>(),
                   state_.at("frequency").data<float>(),
                   m,
                   keep,
                   settings_.totals ? state_.at("total").data<int32_t>() : nullptr,
                   freezing ? state_.at("frozen").data<uint8_t>() : nullptr,
                   freezing ? state_.at("frozen_code").data<C>() : nullptr,
                   freezing ? state_.at("average").data<float>() : nullptr,
                   float(settings_.freeze_threshold),
                   settings_.freeze_at_average}
        .run(codes.numel());
  };
  return codes.dtype() == DType::i8 ? run(int8_t{}) : run(uint8_t{});
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
    layers_.push_back({name, q, w->second, OscillationTracker(s), {}, 0});
  }
}

void WeightWatch::step() {
  for (Watched& l : layers_) {
    Tensor codes = weight_codes(*l.quantizer, l.weight).codes.to(Device{}).packed();
    l.last = l.tracker.update(codes);
    l.flips += l.last.flips;
  }
  ++steps_;
}

double WeightWatch::flip_rate() const {
  int64_t flips = 0, weights = 0;
  for (const Watched& l : layers_) flips += l.last.flips, weights += l.weight.numel();
  return weights ? double(flips) / double(weights) : 0;
}

std::vector<WeightWatch::Layer> WeightWatch::report() {
  std::vector<Layer> all;
  for (Watched& l : layers_) {
    const int64_t n = l.weight.numel();
    Layer r{l.name, 0, double(l.last.oscillating) / double(n), 0, n};
    if (steps_ > 0) {
      r.flip_rate = double(l.flips) / (double(n) * double(steps_));
      const float* o = l.tracker.frequency().data_const<float>();
      r.frequency = double(cpu::sum(n, [o](int64_t i) { return o[i]; })) / double(n);
    }
    l.flips = 0;
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
    for (const auto& [name, t] : l.tracker.state()) all[l.name + "/" + name] = t;
    for (const int64_t c : {l.flips, l.last.flips, l.last.oscillations, l.last.oscillating})
      counts.push_back(c);
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
    l.tracker.load(std::move(own));
    l.flips = c[1 + 4 * i], l.last = {c[2 + 4 * i], c[3 + 4 * i], c[4 + 4 * i]};
  }
}

}  // namespace lowbit
