#include "nn/layers/attention.h"

#include <cmath>

#include "autograd/ops/dropout.h"
#include "autograd/ops/embedding.h"
#include "autograd/ops/linear.h"
#include "autograd/ops/shape.h"
#include "autograd/ops/softmax.h"
#include "autograd/ops/token_order.h"

namespace lowbit {
namespace {

/// Tokens of every sample in another order: y[b, i] = x[b, order[i]]; `inverse` undoes it.
Variable reordered(const Variable& x, const Tensor& order, bool inverse) {
  const int64_t batch = x.size(0), n = x.size(1);
  LOWBIT_CHECK(order.numel() == n, shape, "attention", "order must name every token (got order=", order.str(),
               ", x=", x.str(), ")");
  const Tensor ids = order_rows(order.to(x.device()), batch, inverse);
  return reshape(index_select(reshape(x, {batch * n, -1}), ids), {batch, n, -1});
}

/// Softmax of the scores. What a product of floats made is stored as the next product takes it; what codes
/// gave is made again in backward.
Variable probabilities(const Variable& q, const Variable& k, int64_t heads, double factor,
                       const Variable& bias) {
  const Variable scores = attention_scores(q, k, heads, factor, bias);
  return q.coded() && k.coded() ? softmax(scores) : narrowed_softmax(scores);
}

}  // namespace

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

/// [B, H, N, N]
Variable Attention::reparameterized_probabilities(const Variable& t, double factor, const Variable& bias) {
  const int64_t c = options_.width, h = options_.heads, d = c / h, b = t.size(0), n = t.size(1);
  const Variable wq = reshape(projections_.q->raw_weight(), {h, d, c}),
                 wk = reshape(projections_.k->raw_weight(), {h, d, c});
  const Variable fused = reshape(matmul(permute(wq, {0, 2, 1}), wk), {h * c, c});
  const Variable z = linear(t, (*projections_.fused_slot)(fused), {});  // [B, N, H·C]
  const Variable keys = permute(reshape(z, {b, n, h, c}), {0, 2, 1, 3});
  return probabilities(t, (*projections_.qkx_slot)(keys), h, factor, bias);
}

Variable Attention::operator()(const Variable& x, const AttentionUse& use) {
  const Variable t = in_(x);  // [B, N, C]
  const int64_t c = options_.width, heads = options_.heads;
  const Projections& l = projections_;
  const double factor = 1.0 / std::sqrt(double(c / heads));
  const auto arranged = [&](Variable y) {  // [B, N, C] → [B·groups, N/groups, C]
    if (use.order.defined()) y = reordered(y, use.order, false);
    return use.groups > 1 ? reshape(y, {x.size(0) * use.groups, -1, c}) : y;
  };
  Variable p, v;  // [B·groups, H, N, N], [B·groups, N, C] of N tokens in a group
  if (options_.qk_reparam) {
    LOWBIT_CHECK(use.groups == 1 && !use.order.defined(), value, "attention",
                 "qk_reparam attends over all tokens in their order (got groups=", use.groups, ")");
    p = reparameterized_probabilities(t, factor, use.bias), v = l.v->narrowed(t);
  } else {
    const std::vector<Variable> qkv = l.qkv ? l.qkv->parts(t, 3) : Linear::together(t, {l.q, l.k, l.v});
    v = arranged(qkv[2]);
    p = probabilities((*l.q_slot)(arranged(qkv[0])), (*l.k_slot)(arranged(qkv[1])), heads, factor, use.bias);
  }
  if (training()) p = dropout(p, options_.dropout);
  Variable y = context_(attention_context(probs_(p), v_(v), heads));
  if (use.groups > 1) y = reshape(y, {x.size(0), -1, c});
  y = proj_.narrowed(y);  // token by token, so before or after the order is undone
  if (use.order.defined()) y = reordered(y, use.order, true);
  return training() ? dropout(y, options_.proj_dropout) : y;
}

}  // namespace lowbit
