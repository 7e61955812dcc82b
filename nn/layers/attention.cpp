#include "nn/layers/attention.h"

#include <cmath>

#include "autograd/ops/dropout.h"
#include "autograd/ops/linear.h"
#include "autograd/ops/softmax.h"

namespace lowbit {

Attention::Attention(const Options& o, Generator& g)
    : options_(o),
      in_(slot("in")),
      qkv_(o.split_qkv ? nullptr
                       : &child("qkv", std::make_unique<Linear>(o.width, 3 * o.width, o.qkv_bias, g))),
      proj_q_(o.split_qkv ? &child("proj_q", std::make_unique<Linear>(o.width, o.width, o.qkv_bias, g))
                          : nullptr),
      proj_k_(o.split_qkv ? &child("proj_k", std::make_unique<Linear>(o.width, o.width, o.qkv_bias, g))
                          : nullptr),
      proj_v_(o.split_qkv ? &child("proj_v", std::make_unique<Linear>(o.width, o.width, o.qkv_bias, g))
                          : nullptr),
      q_(slot("q")),
      k_(slot("k")),
      v_(slot("v")),
      probs_(slot("probs")),
      context_(slot("context")),
      proj_(child("proj", std::make_unique<Linear>(o.width, o.width, true, g))) {
  LOWBIT_CHECK(o.heads > 0 && o.width % o.heads == 0, value, "attention",
               "heads must divide the width (got width=", o.width, ", heads=", o.heads, ")");
}

Variable Attention::operator()(const Variable& x) {
  const Variable t = in_(x);  // [B, N, C]
  const int64_t c = options_.width;
  Variable q, k, v;  // [B, N, C]
  if (qkv_) {
    const Variable w = qkv_->quantized_weight();
    q = qkv_->rows(t, w, 0, c), k = qkv_->rows(t, w, c, 2 * c), v = qkv_->rows(t, w, 2 * c, 3 * c);
  } else {
    q = (*proj_q_)(t), k = (*proj_k_)(t), v = (*proj_v_)(t);
  }
  const double factor = 1.0 / std::sqrt(double(c / options_.heads));
  const Variable s = attention_scores(q_(q), k_(k), options_.heads, factor);  // [B, H, N, N]
  Variable p = softmax(s);
  if (training()) p = dropout(p, options_.dropout);
  const Variable y = proj_(context_(attention_context(probs_(p), v_(v), options_.heads)));
  return training() ? dropout(y, options_.proj_dropout) : y;
}

}  // namespace lowbit
