#include "quant/annealing.h"

#include <map>

#include "autograd/core/node.h"
#include "quant/ops/annealing_mask.h"
#include "quant/ops/mean_abs.h"
#include "quant/scheme/scheme.h"

namespace lowbit {

namespace {
constexpr int kHighestBits = 7;  // first and last layer have 8
}  // namespace

ConfidenceAnnealing::ConfidenceAnnealing(Module& model, double range) : range_(range) {
  std::map<std::string, Variable> weights;
  for (const NamedParameter& p : model.parameters()) weights[p.name] = p.parameter->var;
  for (const auto& [slot, q] : quantizers(model)) {
    const auto w = weights.find(slot);
    if (w != weights.end() && q->bits() >= 2 && q->bits() <= kHighestBits)
      layers_.push_back({slot, q, w->second, {}, {}});
  }
}

void ConfidenceAnnealing::before_update() {
  const NoGrad off;
  for (Layer& l : layers_) {
    const Tensor w = l.weight.data();
    const Variable y = l.quantizer->apply(l.weight);
    LOWBIT_CHECK(y.coded(), usage, "annealing", l.name, ": its quantizer gives no levels");
    const Coded& c = *y.coded();
    const GroupLayout g = in_rows(group_layout(w.shape(), c.scale_axis, c.scale.numel(), l.name), w.shape());
    const Shape grouped{g.outer, g.groups, g.inner};
    const auto written = [&](const Tensor& t) { return t.reshape(grouped).mutable_view(); };
    for (Tensor* t : {&l.free, &l.frozen})
      if (!t->defined()) *t = Tensor::empty(w.shape(), DType::f32, w.device());
    const int64_t rows = g.outer * g.groups;
    Tensor work = Tensor::empty({rows + 1, 2}, DType::f32, w.device());
    float* const extremes = work.data<float>() + 2 * rows;
    const float shift = float(c.shift);
    anneal_extremes({w.data_const<float>(), c.scale.data_const<float>(), work.data<float>(), extremes, rows,
                     g.groups, g.inner, shift},
                    w.device());
    const Tensor gradient = l.weight.grad();
    anneal_mask({written(l.free), written(l.frozen), gradient.defined() ? written(gradient) : View{},
                 w.reshape(grouped).view(), c.scale.reshape({1, g.groups, 1}).expand(grouped).view(),
                 extremes, shift, float(range_), float(c.lo), float(c.hi)},
                w.device());
  }
}

void ConfidenceAnnealing::after_update() {
  for (Layer& l : layers_) {
    Tensor w = l.weight.mutable_data();
    anneal_restore({w.mutable_view(), l.free.view(), l.frozen.view()}, w.device());
  }
}

double ConfidenceAnnealing::free_share() const {
  double free = 0, all = 0;
  for (const Layer& l : layers_) {
    if (!l.free.defined()) continue;
    for (const float f : l.free.to_vector<float>()) free += f;
    all += double(l.free.numel());
  }
  return all > 0 ? free / all : 0;
}

std::vector<std::pair<std::string, Tensor>> ConfidenceAnnealing::masks() const {
  std::vector<std::pair<std::string, Tensor>> all;
  for (const Layer& l : layers_) all.emplace_back(l.name, l.free);
  return all;
}

}  // namespace lowbit
