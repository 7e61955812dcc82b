#include "quant/ops/dampening.h"

#include "autograd/ops/broadcast.h"
#include "autograd/ops/pointwise.h"
#include "autograd/ops/reduce.h"

namespace lowbit {

Variable dampening(const Variable& w, const Tensor& w_q, const Tensor& s, int lo, int hi) {
  const Variable below = sub(scale(Variable(s), lo), w), above = sub(w, scale(Variable(s), hi));
  const Variable clamped = sub(add(w, relu(below)), relu(above));
  return sum(square(sub(clamped, Variable(w_q))));
}

}  // namespace lowbit
