#include "train/step/features.h"

#include "autograd/ops/linear.h"
#include "autograd/ops/shape.h"

namespace lowbit {

FeatureWatch::FeatureWatch(ImageModel& model, bool maps, bool tokens) {
  if (!maps && !tokens) return;
  for (const NamedSlot& s : model.slots()) slots_[s.name] = s.slot;
  const std::map<std::string, SlotInfo> infos = model.slot_info();
  constexpr std::string_view kValues = ".v", kBlock = ".mlp_sum";
  for (const NamedSlot& s : model.slots()) {
    if (tokens && s.name.ends_with(kBlock))
      watched(s.name).watch([this](const Variable& x) {
        tokens_.push_back(x.ndim() == 3 ? x : reshape(x, {x.size(0), -1, x.size(-1)}));
      });
    if (!maps || !s.name.ends_with("attn.v")) continue;
    const auto info = infos.find(s.name);
    watch_attention(model, s.name.substr(0, s.name.size() - kValues.size()),
                    info == infos.end() ? 1 : info->second.heads);
  }
}

FeatureWatch::~FeatureWatch() {
  for (Slot* s : watched_) s->watch({});
}

Slot& FeatureWatch::watched(const std::string& name) {
  watched_.push_back(slots_.at(name));
  return *watched_.back();
}

void FeatureWatch::watch_attention(ImageModel& model, const std::string& layer, int64_t heads) {
  const auto keep = [heads](std::vector<Projection>& to) {
    return [&to, heads](const Variable& x) { to.push_back({x, heads}); };
  };
  watched(layer + ".v").watch(keep(v_));
  if (slots_.count(layer + ".q")) {
    watched(layer + ".q").watch(keep(q_));
    watched(layer + ".k").watch(keep(k_));
    return;
  }
  Variable wq, wk;
  for (const NamedParameter& p : model.parameters()) {
    if (p.name == layer + ".q.weight") wq = p.parameter->var;
    if (p.name == layer + ".k.weight") wk = p.parameter->var;
  }
  LOWBIT_ASSERT(wq.defined() && wk.defined());
  watched(layer + ".in").watch([this, wq, wk, heads](const Variable& x) {
    q_.push_back({linear(x, wq, {}), heads}), k_.push_back({linear(x, wk, {}), heads});
  });
}

void FeatureWatch::clear() {
  for (std::vector<Projection>* all : {&q_, &k_, &v_}) all->clear();
  tokens_.clear();
}

std::vector<ScoreMaps> FeatureWatch::maps(bool values) const {
  std::vector<ScoreMaps> all;
  const auto map_of = [](const Projection& p) { return score_map(p.x, p.heads); };
  for (size_t i = 0; i < q_.size(); ++i)
    all.push_back({map_of(q_[i]), map_of(k_.at(i)), values ? map_of(v_.at(i)) : Variable{}});
  return all;
}

}  // namespace lowbit
