#include "train/step/bit_budget.h"

#include <cmath>

#include "autograd/core/node.h"
#include "autograd/ops/broadcast.h"
#include "autograd/ops/embedding.h"
#include "autograd/ops/pointwise.h"
#include "quant/scheme/scheme.h"

namespace lowbit {
namespace {

constexpr double kFloat = 32, kGiga = 1e9;

/// The widths of a quantizer where it has them as a parameter, one for the whole tensor; null otherwise.
Variable* trained_width(Quantizer& q) {
  for (const NamedParameter& p : q.parameters())
    if (p.name == "nbits" && p.parameter->var.numel() == 1) return &p.parameter->var;
  return nullptr;
}

}  // namespace

Variable bit_operations(ImageModel& model) {
  std::map<std::string, Variable> widths;
  for (const auto& [slot, q] : quantizers(model)) {
    const double bits = q->quant_state() == QuantState::off ? kFloat : double(q->bits());
    Variable& v = widths[slot] = Variable(Tensor::full({1}, bits, DType::f32, model.device()));
    const Variable* n = trained_width(*q);
    if (!n || !n->requires_grad()) continue;
    v = add(*n, sub(v, n->detach()));  // rounded with the gradient of the width itself
  }
  const Variable whole(Tensor::full({1}, kFloat, DType::f32, model.device()));
  const auto width = [&](const std::string& slot) {
    const auto at = widths.find(slot);
    return at == widths.end() ? whole : at->second;
  };
  Variable sum;
  for (const ProductCost& c : model.product_costs()) {
    const Variable term = scale(mul(width(c.left), width(c.right)), double(c.macs()) / kGiga);
    sum = sum.defined() ? add(sum, term) : term;
  }
  return sum;
}

Variable bit_budget_penalty(ImageModel& model, double weight, double budget) {
  const Variable over = relu(add_scalar(bit_operations(model), -budget));
  return scale(mul(over, over), weight);
}

void fix_bits(ImageModel& model) {
  for (const auto& [slot, q] : quantizers(model))
    for (const NamedParameter& p : q->parameters())
      if (p.name == "nbits") p.parameter->var.set_requires_grad(false);
}

TrainedWidths::TrainedWidths(ImageModel& model, const ParameterArena& arena) {
  const Tensor& flat = arena.values().flat();
  const float* const begin = flat.data_const<float>();
  std::vector<int64_t> places;
  for (const auto& [slot, any] : quantizers(model)) {
    auto* const q = dynamic_cast<LsqQuantizer*>(any);
    if (!q || !q->widths().requires_grad()) continue;
    quantizers_.push_back(q);
    for (int64_t i = 0; i < q->widths().numel(); ++i)
      places.push_back(q->widths().data().data_const<float>() + i - begin);
  }
  if (places.empty()) return;
  values_ = flat.reshape({flat.numel(), 1});
  places_ = Tensor::from(std::span<const int64_t>(places), {int64_t(places.size())}, flat.device());
}

std::string TrainedWidths::look() {
  if (quantizers_.empty()) return "";
  const NoGrad off;
  const std::vector<float> now = index_select(Variable(values_), places_).data().to_vector<float>();
  std::string text;
  auto at = now.begin();
  for (LsqQuantizer* q : quantizers_) {
    const auto end = at + q->widths().numel();
    for (const int bits : q->know_widths({at, end}))
      text += char((q->widths().requires_grad() ? '0' : 'a') + bits);  // fix_bits() changes the step too
    at = end;
  }
  return text;
}

}  // namespace lowbit
