#include "train/step/monitor.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "autograd/core/node.h"
#include "quant/scheme/scheme.h"
#include "tensor/core/context.h"

namespace lowbit {
namespace {

constexpr int kMostLines = 5, kStepsWithoutGradient = 3, kDistanceBins = 25;
constexpr double kMuchMoved = 0.5, kMuchClipped = 0.2;

std::string number(const char* form, double v) {
  char text[64];
  std::snprintf(text, sizeof text, form, v);
  return text;
}

/// By layer: "blocks.0.attn.qkv.weight" → "blocks.0.attn.qkv"; activations keep the name of their slot, and
/// so does the weight of a layer with the name of such a slot (attn.v under query-key reparameterization).
std::vector<std::pair<std::string, std::vector<float>>> all_scales(Module& model) {
  constexpr std::string_view kWeight = ".weight";
  std::vector<std::pair<std::string, std::vector<float>>> all;
  std::set<std::string> slots;
  const auto installed = quantizers(model);
  for (const auto& [slot, q] : installed) slots.insert(slot);
  for (const auto& [slot, q] : installed) {
    if (q->quant_state() == QuantState::off || !q->initialised()) continue;
    std::string name = slot;
    if (slot.ends_with(kWeight) && !slots.contains(slot.substr(0, slot.size() - kWeight.size())))
      name.resize(slot.size() - kWeight.size());
    all.emplace_back(std::move(name), q->scale().to_vector<float>());
  }
  return all;
}

bool all_finite(const Tensor& t) {
  if (t.dtype() != DType::f32) return true;
  const std::vector<float> v = t.to_vector<float>();
  return std::all_of(v.begin(), v.end(), [](float x) { return std::isfinite(x); });
}

}  // namespace

void Warnings::give(const std::string& kind, int64_t step, const Found& found) {
  std::vector<const Found::value_type*> fresh;
  for (const auto& f : found)
    if (given_.insert(kind + " " + f.first).second) fresh.push_back(&f);
  if (fresh.empty() || ++lines_[kind] > kMostLines) return;
  std::string text = str_cat("step ", step, ": ", fresh[0]->first, ": ", fresh[0]->second);
  if (fresh.size() > 1) text += str_cat("; the same for ", fresh.size() - 1, " more: ");
  for (size_t i = 1; i < std::min<size_t>(fresh.size(), 4); ++i)
    text += (i > 1 ? ", " : "") + fresh[i]->first;
  if (fresh.size() > 4) text += ", …";
  if (lines_[kind] == kMostLines) text += " (the last warning of this kind)";
  log_.warning(text);
}

void Warnings::scales(int64_t step, const std::vector<std::pair<std::string, std::vector<float>>>& now) {
  Found low, moved;
  for (const auto& [layer, values] : now) {
    std::vector<float>& before = scales_[layer];
    for (size_t i = 0; i < values.size(); ++i) {
      const float v = values[i], old = before.size() == values.size() ? before[i] : v;
      if (!(v > 0)) {
        low.emplace_back(layer, number("the scale is not positive (%g)", double(v)));
        break;
      }
      if (std::fabs(v - old) > float(kMuchMoved) * std::fabs(old)) {
        moved.emplace_back(layer, number("the scale moved from %.4g", double(old)) +
                                      number(" to %.4g in one step; lower --lr?", double(v)));
        break;
      }
    }
    before = values;
  }
  give("scale", step, low);
  give("moved", step, moved);
}

void Warnings::gradients(int64_t step, const ParameterArena& a) {
  Found found;
  const Tensor gradients = a.grads().flat().to(Device{});
  const float* g = gradients.data_const<float>();
  for (size_t i = 0; i < a.size(); ++i) {
    const ArenaSlice& s = a.layout().slices[i];
    if (s.shape.ndim() < 2) continue;  // a layer is judged by its weight
    const float *begin = g + s.offset, *end = begin + s.numel;
    const bool zero = !a.has_grad(i) || std::all_of(begin, end, [](float x) { return x == 0; });
    if (int& steps = no_gradient_[s.name]; (steps = zero ? steps + 1 : 0) == kStepsWithoutGradient)
      found.emplace_back(s.name, str_cat("no gradient for ", kStepsWithoutGradient, " steps"));
  }
  give("gradient", step, found);
}

void Warnings::clipped(int64_t step, const std::vector<std::pair<std::string, double>>& shares) {
  Found found;
  for (const auto& [layer, share] : shares)
    if (share > kMuchClipped)
      found.emplace_back(layer, number("%.0f %% of the weights lie outside the levels", 100 * share));
  give("clipped", step, found);
}

void Warnings::loader(int64_t step, double step_seconds, double waited, int64_t workers) {
  if (waited > 0.5 * step_seconds)
    give("loader", step,
         {{"data",
           str_cat("the loader is slower than the training: ", number("%.0f", 100 * waited / step_seconds),
                   " % of the time is waiting for images; raise --workers (now ", workers,
                   ") or store smaller images")}});
}

Monitor::Monitor(ImageModel& model, bool track, Log& log) : model_(model), log_(log), warnings_(log) {
  if (track) watch_.emplace(model);
  if (watch_ && watch_->empty()) watch_.reset();
}

void Monitor::after_update(int64_t step) { warnings_.scales(step, all_scales(model_)); }

Metrics Monitor::metrics() {
  Metrics m;
  if (watch_) {
    const auto layers = watch_->report();
    const auto total = WeightWatch::total(layers);
    share_ = total.share;
    m = {{"osc/share", total.share}, {"osc/flip_rate", total.flip_rate}, {"osc/frequency", total.frequency}};
    for (const auto& l : layers) m.emplace_back("osc/share/" + l.name, l.share);
    for (const auto& l : layers) m.emplace_back("osc/flip_rate/" + l.name, l.flip_rate);
  }
  for (const auto& [layer, values] : all_scales(model_)) {
    double sum = 0;
    for (const float v : values) sum += double(v);
    m.emplace_back("scale/" + layer, sum / double(values.size()));
  }
  return m;
}

void Monitor::placements(int64_t step, int64_t epoch, RunLog& run_log) {
  if (!watch_) return;
  Metrics metrics;
  std::vector<std::pair<std::string, double>> clipped;
  std::vector<double> bins(kDistanceBins, 0.0);
  double weights = 0, outside = 0, dead = 0;
  for (const auto& p : watch_->placements()) {
    const std::vector<float> d = p.distances.to_vector<float>();
    for (const float v : d)
      if (!std::isnan(v)) ++bins[size_t(std::min(kDistanceBins - 1, int(v * 2 * kDistanceBins)))];
    const double n = double(d.size());
    weights += n, outside += n * p.clipped, dead += n * p.dead_zone;
    clipped.emplace_back(p.name, p.clipped);
    metrics.emplace_back("clipped/" + p.name, p.clipped);
    metrics.emplace_back("dead_zone/" + p.name, p.dead_zone);
    metrics.emplace_back("outlier/" + p.name, p.outlier);
    run_log.histogram("threshold_distance/" + p.name, step, d);
  }
  if (weights == 0) return;
  for (double& b : bins) b /= weights;
  metrics.insert(metrics.begin(), {{"clipped", outside / weights}, {"dead_zone", dead / weights}});
  run_log.event(step, epoch, "weights", metrics, {{"threshold_distance", bins}});
  warnings_.clipped(step, clipped);
  std::string line = number("weights: %.2f %% clipped", 100 * outside / weights) +
                     number(", %.2f %% at zero", 100 * dead / weights);
  if (share_ >= 0) line += number(", %.2f %% oscillating", 100 * share_);
  log_.info(line);
}

TensorMap Monitor::state() const {
  if (!watch_) return {};
  TensorMap all = watch_->state();
  const double share[] = {share_};
  all["share"] = Tensor::from(std::span<const double>(share), {1});
  return all;
}

void Monitor::load(const TensorMap& s) {
  if (!watch_ || s.empty()) return;  // tracking begins now
  watch_->load(s);
  if (const auto share = s.find("share"); share != s.end()) share_ = share->second.item<double>();
}

std::string find_nonfinite(ImageModel& model, const Tensor& images, const std::function<void()>& pass) {
  if (!all_finite(images)) return "the images are not finite";
  for (const NamedParameter& p : model.parameters())
    if (!all_finite(p.parameter->var.data())) return "the parameter " + p.name + " is not finite";
  struct Trail final : Transform {
    std::string name, *last;
    Slot inside;
    Variable apply(const Variable& x) override { return *last = name, inside(x); }
  };
  const std::vector<NamedSlot> slots = model.slots();
  std::vector<Slot> before;
  std::string last, cause = "every operation's output is finite when repeated";
  for (const NamedSlot& s : slots) {
    before.push_back(*s.slot);
    auto trail = std::make_shared<Trail>();
    trail->name = s.name, trail->last = &last, trail->inside = *s.slot;
    s.slot->set(trail, s.slot->state_name());
  }
  context().check_finite = true;
  try {
    pass();
  } catch (const Error& e) {
    cause = str_cat(e.what(), last.empty() ? "" : "; after " + last);
  }
  context().check_finite = false;
  for (size_t i = 0; i < slots.size(); ++i) *slots[i].slot = before[i];
  return cause;
}

}  // namespace lowbit
