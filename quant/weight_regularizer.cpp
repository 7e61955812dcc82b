#include "quant/weight_regularizer.h"

#include <cmath>
#include <map>

#include "autograd/core/node.h"
#include "autograd/ops/broadcast.h"
#include "quant/ops/dampening.h"
#include "quant/ops/l1_factor.h"
#include "quant/quantizer/lsq_quantizer.h"
#include "quant/quantizer/minmax_quantizer.h"
#include "quant/quantizer/ofq_quantizer.h"
#include "quant/scheme/scheme.h"
#include "tensor/core/constant.h"

namespace lowbit {

Tensor bin_gradient_factor(const Tensor& w, bool convolution, int highest) {
  if (!convolution) return l1_factors(w, std::span(&highest, 1), L1Factor::bins);
  const float g = float(1 / std::sqrt(double(w.numel()) * highest));
  return constant(std::span(&g, 1), {1}, w.device());
}

Variable weight_regularizer(Module& model, MembershipTest membership) {
  std::map<std::string, Variable> weights;
  for (const NamedParameter& p : model.parameters()) weights[p.name] = p.parameter->var;
  Variable sum;
  for (const auto& [slot, quantizer] : quantizers(model)) {
    const auto* q = dynamic_cast<const LsqQuantizer*>(quantizer);
    const auto w = weights.find(slot);
    if (!q || w == weights.end()) continue;
    LOWBIT_CHECK(q->spec().groups == 1, usage, "regularizer", slot,
                 ": one scale for the whole weight is needed");
    BinRegularizerSettings s;
    s.levels = Levels::of(q->bits(), true);
    s.slot = q->bits() - LsqQuantizer::kMinBits;
    s.factor = bin_gradient_factor(w->second.data(), w->second.ndim() == 4, s.levels.hi);
    s.membership = membership;
    const Variable r = bin_regularizer(w->second, q->alpha(), s);
    sum = sum.defined() ? add(sum, r) : r;
  }
  return sum;
}

Variable dampening_regularizer(Module& model) {
  std::map<std::string, Variable> weights;
  for (const NamedParameter& p : model.parameters()) weights[p.name] = p.parameter->var;
  Variable sum;
  for (const auto& [slot, q] : quantizers(model)) {
    const auto at = weights.find(slot);
    if (at == weights.end() || q->bits() < 2 || dynamic_cast<const MinMaxQuantizer*>(q)) continue;
    const Variable& w = at->second;
    Tensor values;
    {
      const NoGrad off;
      values = q->apply(w).data();
    }
    const Tensor s = q->scale().to(w.device());  // of what was quantized just now
    Levels l = Levels::of(q->bits(), true);
    if (dynamic_cast<const StatsqQuantizer*>(q)) l.hi = -l.lo;
    const int axis = s.numel() == 1 ? Coded::kPerTensor : q->spec().axis;
    const Variable r = dampening(w, values, s, axis, l.lo, l.hi);
    sum = sum.defined() ? add(sum, r) : r;
  }
  return sum;
}

}  // namespace lowbit
