#include "nn/layers/linear.h"

#include "autograd/ops/linear.h"
#include "nn/core/init.h"

namespace lowbit {

Linear::Linear(int64_t in_features, int64_t out_features, bool bias, Generator& g)
    : weight_(param("weight", init::trunc_normal({out_features, in_features}, 0.02, g))),
      bias_(bias ? &param("bias", Tensor::zeros({out_features}), false) : nullptr),
      weight_slot_(slot("weight")),
      out_(slot("out")) {}

Variable Linear::operator()(const Variable& x) { return together(x, {this})[0]; }

std::vector<Variable> Linear::parts(const Variable& x, int64_t count) {
  const LinearLayer one[] = {{quantized_weight(), bias(), count}};
  return linear_outputs(x, one);
}

std::vector<Variable> Linear::together(const Variable& x, std::initializer_list<Linear*> layers) {
  std::vector<LinearLayer> all;
  for (Linear* l : layers) all.push_back({l->quantized_weight(), l->bias()});
  std::vector<Variable> y = linear_outputs(x, all);
  for (size_t i = 0; i < y.size(); ++i) y[i] = layers.begin()[i]->out_(y[i]);
  return y;
}

}  // namespace lowbit
