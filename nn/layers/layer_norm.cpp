#include "nn/layers/layer_norm.h"

#include "autograd/ops/layer_norm.h"

namespace lowbit {

LayerNorm::LayerNorm(int64_t width, double eps)
    : weight_(param("weight", Tensor::full({width}, 1), false)),
      bias_(param("bias", Tensor::zeros({width}), false)),
      out_(slot("out")),
      eps_(eps) {}

Variable LayerNorm::operator()(const Variable& x) { return out_(layer_norm(x, weight_, bias_, eps_)); }

}  // namespace lowbit
