#include "train/optim/ema.h"

#include <algorithm>
#include <set>
#include <vector>

#include "tensor/core/constant.h"
#include "tensor/core/error.h"
#include "train/optim/update.h"

namespace lowbit {
namespace {

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
  std::vector<int64_t> rows;
  int64_t most = 0;
  const auto average = [&](Tensor& e, const Tensor& w) {
    rows.insert(rows.end(), {int64_t(reinterpret_cast<intptr_t>(e.data<float>())),
                             int64_t(reinterpret_cast<intptr_t>(w.data_const<float>())), w.numel()});
    most = std::max(most, w.numel());
  };
  average(average_.flat(), arena_->values().flat());
  for (auto& x : extras_) {
    if (x.value.dtype() == DType::f32)
      average(x.average, x.value);
    else
      x.average.copy_from(x.value);
  }
  const Device d = average_.flat().device();
  const int64_t count = int64_t(rows.size()) / 3;
  const Tensor table = constant(std::span<const int64_t>(rows), {count, 3}, d);
  blend({table.data_const<int64_t>(), count, most, {float(decay_), float(1 - decay_)}}, d);
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
