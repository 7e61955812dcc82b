#include "nn/layers/linear.h"

#include "autograd/ops/linear.h"
#include "autograd/ops/shape.h"
#include "nn/core/init.h"

namespace lowbit {

Linear::Linear(int64_t in_features, int64_t out_features, bool bias, Generator& g)
    : weight_(param("weight", init::trunc_normal({out_features, in_features}, 0.02, g))),
      bias_(bias ? &param("bias", Tensor::zeros({out_features}), false) : nullptr),
      weight_slot_(slot("weight")),
      out_(slot("out")) {}

Variable Linear::operator()(const Variable& x) {
  return out_(linear(x, quantized_weight(), bias_ ? *bias_ : Variable{}));
}

Variable Linear::rows(const Variable& x, const Variable& weight, int64_t begin, int64_t end) {
  return linear(x, slice(weight, 0, begin, end), bias_ ? slice(*bias_, 0, begin, end) : Variable{});
}

}  // namespace lowbit
