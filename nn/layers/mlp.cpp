#include "nn/layers/mlp.h"

#include <limits>

#include "autograd/ops/dropout.h"
#include "autograd/ops/pointwise.h"

namespace lowbit {

Mlp::Mlp(const Options& o, Generator& g)
    : options_(o),
      in_(slot("in")),
      fc1_(child(o.names[0], std::make_unique<Linear>(o.width, o.hidden, true, g))),
      hidden_(slot("hidden")),
      fc2_(child(o.names[1], std::make_unique<Linear>(o.hidden, o.width, true, g))) {}

Variable Mlp::operator()(const Variable& x) {
  Variable h = fc1_.narrowed(in_(x));
  h = options_.relu ? relu(h) : gelu(h);
  if (options_.clamp_gelu) h = clamp(h, -std::numeric_limits<double>::infinity(), 1.0);
  if (training()) h = dropout(h, options_.dropout);
  const Variable y = fc2_.narrowed(hidden_(h));
  return training() ? dropout(y, options_.dropout) : y;
}

}  // namespace lowbit
