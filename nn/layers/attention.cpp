#include "nn/layers/attention.h"

#include <cmath>

#include "autograd/ops/dropout.h"
#include "autograd/ops/linear.h"
#include "autograd/ops/shape.h"
#include "autograd/ops/softmax.h"

namespace lowbit {

Attention::Projections Attention::make_projections(Generator& g) {
  const Options& o = options_;
  const auto layer = [&](const char* name, int64_t rows, bool bias) {
    return &child(name, std::make_unique<Linear>(o.width, rows, bias, g));
  };
  Projections p;
  if (o.qk_reparam) {
    p.q = layer("q", o.width, false), p.k = layer("k", o.width, false), p.v = layer("v", o.width, o.qkv_bias);
    p.fused_slot = &slot("qk.weight"), p.qkx_slot = &slot("qkx");
    return p;
  }
  if (o.split_qkv) {
    p.q = layer("proj_q", o.width, o.qkv_bias), p.k = layer("proj_k", o.width, o.qkv_bias);
    p.v = layer("proj_v", o.width, o.qkv_bias);
  } else {
    p.qkv = layer("qkv", 3 * o.width, o.qkv_bias);
  }
  p.q_slot = &slot("q"), p.k_slot = &slot("k");
  return p;
}

Attention::Attention(const Options& o, Generator& g)
    : options_(o),
      in_(slot("in")),
      projections_(make_projections(g)),
      v_(slot("v")),
      probs_(slot("probs")),
      context_(slot("context")),
      proj_(child("proj", std::make_unique<Linear>(o.width, o.width, true, g))) {
  LOWBIT_CHECK(o.heads > 0 && o.width % o.heads == 0, value, "attention",
               "heads must divide the width (got width=", o.width, ", heads=", o.heads, ")");
  LOWBIT_CHECK(!(o.qk_reparam && o.split_qkv), value, "attention",
               "qk_reparam and split_qkv are different layouts");
}

/// [B, H, N, N] before softmax.
Variable Attention::reparameterized_scores(const Variable& t, double factor) {
  const int64_t c = options_.width, h = options_.heads, d = c / h, b = t.size(0), n = t.size(1);
  const Variable wq = reshape(projections_.q->raw_weight(), {h, d, c}),
                 wk = reshape(projections_.k->raw_weight(), {h, d, c});
  const Variable fused = reshape(matmul(permute(wq, {0, 2, 1}), wk), {h * c, c});
  const Variable z = linear(t, (*projections_.fused_slot)(fused), {});        // [B, N, H·C]
  const Variable keys = (*projections_.qkx_slot)(reshape(z, {b, n * h, c}));  // [B, N·H, C]
  const Variable s = attention_scores(t, keys, 1, factor);                    // [B, 1, N, N·H]
  return permute(reshape(s, {b, n, n, h}), {0, 3, 1, 2});
}

Variable Attention::operator()(const Variable& x) {
  const Variable t = in_(x);  // [B, N, C]
  const int64_t c = options_.width;
  const Projections& l = projections_;
  const double factor = 1.0 / std::sqrt(double(c / options_.heads));
  Variable scores, v;  // [B, H, N, N], [B, N, C]
  if (options_.qk_reparam) {
    scores = reparameterized_scores(t, factor), v = (*l.v)(t);
  } else {
    Variable q, k;  // [B, N, C]
    if (l.qkv) {
      const Variable w = l.qkv->quantized_weight();
      q = l.qkv->rows(t, w, 0, c), k = l.qkv->rows(t, w, c, 2 * c), v = l.qkv->rows(t, w, 2 * c, 3 * c);
    } else {
      q = (*l.q)(t), k = (*l.k)(t), v = (*l.v)(t);
    }
    scores = attention_scores((*l.q_slot)(q), (*l.k_slot)(k), options_.heads, factor);
  }
  Variable p = softmax(scores);
  if (training()) p = dropout(p, options_.dropout);
  const Variable y = proj_(context_(attention_context(probs_(p), v_(v), options_.heads)));
  return training() ? dropout(y, options_.proj_dropout) : y;
}

}  // namespace lowbit
