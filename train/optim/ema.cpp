#include "train/optim/ema.h"

#include <set>

#include "tensor/core/error.h"
#include "train/optim/update.h"

namespace lowbit {
namespace {

void average(Tensor& e, const Tensor& w, double decay) {
  blend({e.mutable_view(), w.view(), {float(decay), float(1 - decay)}}, e.device());
}

void exchange(Tensor& a, Tensor& b) {
  const Tensor t = a.clone();
  a.copy_from(b);
  b.copy_from(t);
}

}  // namespace

Ema::Ema(ParameterArena& arena, const TensorMap& state, double decay)
    : arena_(&arena), average_(arena.layout_ptr(), arena.values().flat().device()), decay_(decay) {
  average_.flat().copy_from(arena.values().flat());
  std::set<std::string> known;
  for (const auto& s : arena.layout().slices) known.insert(s.name);
  for (const auto& [name, t] : state)
    if (!known.count(name)) extras_.push_back({name, t, t.clone()});
}

void Ema::update() {
  average(average_.flat(), arena_->values().flat(), decay_);
  for (auto& x : extras_) {
    if (x.value.dtype() == DType::f32)
      average(x.average, x.value, decay_);
    else
      x.average.copy_from(x.value);
  }
}

void Ema::swap() {
  exchange(average_.flat(), arena_->values().flat());
  arena_->values().touch();
  for (auto& x : extras_) exchange(x.average, x.value);
}

TensorMap Ema::state() const {
  TensorMap s = average_.state();
  for (const auto& x : extras_) s[x.name] = x.average;
  return s;
}

void Ema::load(const TensorMap& s) {
  average_.load(s);
  for (auto& x : extras_) {
    const auto it = s.find(x.name);
    LOWBIT_CHECK(it != s.end() && it->second.shape() == x.average.shape(), io, "ema", "the average of '",
                 x.name, "' must be ", x.average.shape().str(), " (got ",
                 it == s.end() ? "nothing" : it->second.str(), ")");
    x.average.copy_from(it->second);
  }
}

}  // namespace lowbit
