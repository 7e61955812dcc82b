#include "train/optim/optimizer.h"

#include <cmath>

namespace lowbit {
namespace {

Tensor chunk_table(const ArenaLayout& layout, Device d) {
  std::vector<int64_t> rows;
  for (size_t s = 0; s < layout.slices.size(); ++s) {
    const ArenaSlice& slice = layout.slices[s];
    for (int64_t b = 0; b < slice.numel; b += kUpdateChunk) {
      const int64_t n = std::min(kUpdateChunk, slice.numel - b);
      rows.insert(rows.end(), {int64_t(s), slice.offset + b, slice.offset + b + n});
    }
  }
  return Tensor::from(std::span<const int64_t>(rows), {int64_t(rows.size() / 3), 3}, d);
}

}  // namespace

Optimizer::Optimizer(ParameterArena& arena, OptimizerOptions o)
    : arena_(&arena),
      o_(std::move(o)),
      first_(arena.layout_ptr(), arena.values().flat().device()),
      steps_(arena.size(), 0),
      chunks_(chunk_table(arena.layout(), arena.values().flat().device())) {
  const bool known = o_.kind == "adamw" || o_.kind == "adam" || o_.kind == "sgd" || o_.kind == "momentum";
  LOWBIT_CHECK(known, usage, "optimizer", "kind must be adamw, adam, sgd or momentum (got '", o_.kind, "')");
  if (o_.kind.starts_with("adam"))
    second_ = std::make_unique<Arena>(arena.layout_ptr(), arena.values().flat().device());
}

std::vector<float> Optimizer::hyper(double lr) {
  std::vector<float> rows(arena_->size() * kHyperColumns, 0.f);
  for (size_t i = 0; i < arena_->size(); ++i) {
    if (!arena_->has_grad(i)) continue;
    const double t = double(++steps_[i]);
    const ArenaSlice& slice = arena_->layout().slices[i];
    const double rate = lr * double(slice.lr_scale), decay = slice.decay ? o_.weight_decay : 0;
    const bool decoupled = o_.kind == "adamw";
    float* row = &rows[i * kHyperColumns];
    row[0] = 1;
    row[1] = decoupled ? float(1 - rate * decay) : 1.f;
    row[2] = decoupled ? 0.f : float(decay);
    row[3] = adam() ? float(rate / (1 - std::pow(o_.beta1, t))) : float(rate);
    row[4] = adam() ? float(std::sqrt(1 - std::pow(o_.beta2, t))) : 1.f;
  }
  return rows;
}

void Optimizer::step(double lr) {
  const std::vector<float> rows = hyper(lr);
  step(Tensor::from(std::span<const float>(rows), {int64_t(arena_->size()), kHyperColumns},
                    arena_->values().flat().device()));
}

void Optimizer::step(const Tensor& hyper) {
  LOWBIT_CHECK(hyper.shape() == Shape({int64_t(arena_->size()), kHyperColumns}), shape, "optimizer",
               "hyper must be [", arena_->size(), ", ", kHyperColumns, "] (got ", hyper.str(), ")");
  Tensor& values = arena_->values().flat();
  const auto* rows = reinterpret_cast<const UpdateHyper*>(hyper.data_const<float>());
  const auto run = [&](const auto& slot, auto update) {
    UpdateArgs<decltype(update)> a{values.data<float>(),
                                   first_.flat().data<float>(),
                                   second_ ? second_->flat().data<float>() : nullptr,
                                   std::as_const(*arena_).grads().flat().data<float>(),
                                   chunks_.data_const<int64_t>(),
                                   chunks_.size(0),
                                   rows,
                                   update};
    slot(a, values.device());
    arena_->values().touch();
  };
  if (adam())
    run(adam_update, AdamUpdate{float(o_.beta1), float(o_.beta2), float(1 - o_.beta1), float(1 - o_.beta2),
                                float(o_.eps)});
  else
    run(sgd_update, SgdUpdate{float(o_.momentum), o_.kind == "sgd" ? 1.f : 0.f});
}

TensorMap Optimizer::state() const {
  TensorMap s = first_.state(adam() ? "exp_avg/" : "momentum/");
  if (adam()) s.merge(second_->state("exp_avg_sq/"));
  s["steps"] = Tensor::from(std::span<const int64_t>(steps_), {int64_t(steps_.size())});
  return s;
}

void Optimizer::load(const TensorMap& s) {
  const auto steps = s.find("steps");
  LOWBIT_CHECK(steps != s.end() && steps->second.numel() == int64_t(steps_.size()) &&
                   steps->second.dtype() == DType::i64,
               io, "optimizer", "steps must be i64 [", steps_.size(), "] (got ",
               steps == s.end() ? "nothing" : steps->second.str(), ")");
  first_.load(s, adam() ? "exp_avg/" : "momentum/");
  if (adam()) second_->load(s, "exp_avg_sq/");
  steps_ = steps->second.to_vector<int64_t>();
}

size_t Optimizer::bytes() const { return first_.flat().bytes() * (second_ ? 2 : 1); }

}  // namespace lowbit
