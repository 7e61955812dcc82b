#include "train/step/bit_budget.h"

#include <cmath>

#include "autograd/ops/broadcast.h"
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
    const float value =
        n->data().to(Device{}).item<float>();  // rounded with the gradient of the width itself
    v = add(*n, Variable(Tensor::full({1}, bits - double(value), DType::f32, model.device())));
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
  const Variable over = add_scalar(bit_operations(model), -budget);
  if (over.data().to(Device{}).item<float>() <= 0) return {};
  return scale(mul(over, over), weight);
}

void fix_bits(ImageModel& model) {
  for (const auto& [slot, q] : quantizers(model))
    for (const NamedParameter& p : q->parameters())
      if (p.name == "nbits") p.parameter->var.set_requires_grad(false);
}

}  // namespace lowbit
