#include "train/optim/arena.h"

#include <algorithm>

#include "tensor/core/error.h"

namespace lowbit {
namespace {

std::vector<NamedParameter> trainable(const std::vector<NamedParameter>& all) {
  std::vector<NamedParameter> some;
  for (const auto& p : all)
    if (p.parameter->var.requires_grad()) some.push_back(p);
  LOWBIT_CHECK(!some.empty(), value, "arena", "the model must have trainable parameters (got none of ",
               all.size(), ")");
  return some;
}

std::shared_ptr<const ArenaLayout> layout_of(const std::vector<NamedParameter>& parameters) {
  auto layout = std::make_shared<ArenaLayout>();
  for (const auto& p : parameters) {
    const Parameter& q = *p.parameter;
    LOWBIT_CHECK(q.var.dtype() == DType::f32, dtype, "arena", "parameters must be f32 (got '", p.name, "' ",
                 q.var.str(), ")");
    layout->add(p.name, q.var.shape(), q.decay, q.lr_scale);
  }
  return layout;
}

}  // namespace

void ArenaLayout::add(const std::string& name, const Shape& shape, bool decay, float lr_scale) {
  const int64_t n = shape.numel();
  slices.push_back({name, shape, total, n, decay, lr_scale});
  total += (n + kArenaAlign - 1) / kArenaAlign * kArenaAlign;
}

int64_t ArenaLayout::numel() const {
  int64_t n = 0;
  for (const auto& s : slices) n += s.numel;
  return n;
}

Arena::Arena(std::shared_ptr<const ArenaLayout> layout, Device d)
    : layout_(std::move(layout)), flat_(Tensor::zeros({layout_->total}, DType::f32, d)) {
  for (const ArenaSlice& s : layout_->slices) {
    auto part = std::make_shared<Storage>(flat_.storage(), size_t(s.offset) * sizeof(float),
                                          size_t(s.numel) * sizeof(float));
    windows_.push_back(Tensor::window(std::move(part), s.shape, DType::f32, 0));
  }
}

void Arena::touch() {
  for (const Tensor& w : windows_) ++w.storage()->version;
}

TensorMap Arena::state(const std::string& prefix) const {
  TensorMap map;
  for (size_t i = 0; i < layout_->slices.size(); ++i) map[prefix + layout_->slices[i].name] = window(i);
  return map;
}

void Arena::load(const TensorMap& s, const std::string& prefix) {
  std::string bad;
  for (const auto& slice : layout_->slices) {
    const auto it = s.find(prefix + slice.name);
    if (it != s.end() && it->second.shape() == slice.shape) continue;
    bad += (bad.empty() ? "" : ", ") + prefix + slice.name;
    bad += it == s.end() ? " missing" : ": file " + it->second.shape().str() + ", model " + slice.shape.str();
  }
  LOWBIT_CHECK(bad.empty(), io, "load", "every entry must be there with its shape (got ", bad, ")");
  for (size_t i = 0; i < layout_->slices.size(); ++i)
    windows_[i].copy_from(s.at(prefix + layout_->slices[i].name));
}

ParameterArena::ParameterArena(const std::vector<NamedParameter>& parameters)
    : values_(layout_of(trainable(parameters)), parameters.front().parameter->var.device()),
      grads_(values_.layout_ptr(), values_.flat().device()) {
  for (const auto& p : trainable(parameters)) {
    Variable& var = p.parameter->var;
    Tensor window = values_.window(vars_.size());
    window.copy_from(var.data());
    var.mutable_data() = window;
    var.set_grad_buffer(grads_.window(vars_.size()));
    vars_.push_back(var);
  }
}

void ParameterArena::zero_grad() {
  for (const auto& v : vars_) v.zero_grad();
}

bool takes_weight_decay(const std::string& name, int ndim, const std::vector<std::string>& exempt) {
  return ndim > 1 && !name.ends_with(".bias") &&
         std::find(exempt.begin(), exempt.end(), name) == exempt.end();
}

}  // namespace lowbit
