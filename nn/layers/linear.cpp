#include "nn/layers/linear.h"

#include "autograd/ops/linear.h"
#include "nn/core/init.h"

namespace lowbit {

Linear::Linear(int64_t in_features, int64_t out_features, bool bias, Generator& g)
    : weight_(param("weight", init::trunc_normal({out_features, in_features}, 0.02, g))),
      bias_(bias ? &param("bias", Tensor::zeros({out_features}), false) : nullptr),
      weight_slot_(slot("weight")),
      out_(slot("out")) {}

std::vector<Variable> Linear::parts(const Variable& x, int64_t count) {
  const LinearLayer one[] = {{quantized_weight(), bias(), count, true}};
  return linear_outputs(x, one);
}

std::vector<Variable> Linear::all(std::initializer_list<Linear*> layers, const Variable& x, bool narrow) {
  std::vector<LinearLayer> each;
  for (Linear* l : layers) each.push_back({l->quantized_weight(), l->bias(), 1, narrow});
  std::vector<Variable> y = linear_outputs(x, each);
  for (size_t i = 0; i < y.size(); ++i) y[i] = layers.begin()[i]->out_(y[i]);
  return y;
}

}  // namespace lowbit
