#include "autograd/ops/linear.h"

#include "autograd/ops/deferred.h"
#include "autograd/ops/operand.h"
#include "autograd/ops/reduce.h"
#include "tensor/engine/accumulate.h"
#include "tensor/engine/isa.h"

namespace lowbit {
namespace {

Operand operand(const Variable& x) { return x.coded() ? Operand{{}, *x.coded()} : Operand{x.data(), {}}; }

/// [..., K] seen as [T, K].
Tensor flat_rows(const Tensor& t) {
  const int64_t k = t.size(-1);
  return t.packed().reshape({k ? t.numel() / k : 0, k});
}

/// The same of an operand; a scale per token or sample becomes one per row. A scale along K does not factor
/// out of a product over K: such codes become floats.
Operand flat_rows(const Variable& x) {
  const Coded* c = x.coded();
  if (!c || c->by_groups() || c->scale_axis == -1) return {flat_rows(x.data()), {}};
  Operand r{{}, *c};
  r.codes.codes = flat_rows(c->codes);
  if (c->per_tensor()) return r;
  Shape own, all;  // of the scale among the leading dimensions
  for (int d = 0; d < x.ndim() - 1; ++d) {
    all.append(x.size(d));
    own.append(d == x.ndim() + c->scale_axis ? x.size(d) : 1);
  }
  r.codes.scale = c->scale.packed().reshape(own).expand(all).packed().reshape({all.numel()});
  r.codes.scale_axis = -2;
  return r;
}

/// [B, N, H·D] seen as [B, H, N, D].
Tensor by_heads(const Tensor& t, int64_t heads) {
  return t.packed().reshape({t.size(0), t.size(1), heads, t.size(2) / heads}).permute({0, 2, 1, 3});
}

/// The same of an operand; every head gets its part of what runs along H·D.
Operand by_heads(const Variable& x, int64_t heads) {
  const Coded* c = x.coded();
  if (!c) return {by_heads(x.data(), heads), {}};
  const auto parts = [heads](const Tensor& t) { return t.packed().reshape({heads, t.numel() / heads}); };
  Operand r{{}, *c};
  r.codes.codes = by_heads(c->codes, heads);
  if (c->scale_axis == -1) r.codes.scale = parts(c->scale);
  if (c->offset.defined() && c->offset.numel() > 1) r.codes.offset = parts(c->offset);
  return r;
}

/// Rows of x times wᵀ, plus the bias where there is one, shaped like y.
Tensor linear_forward(const Operand& x, const Operand& w, const Tensor& bias, const Shape& shape) {
  Tensor y = Tensor::empty(shape, x.result(), x.values().device());
  Tensor rows = flat_rows(y);
  product_nt(rows, x.input(), w.input(), bias, 1);
  return y;
}

/// An integer product is exact, and cheap to repeat where there is an instruction for it: whoever needs its
/// result in backward need not keep it. Without one, repeating them would cost a tenth of a step.
struct LinearNode final : Node {
  SavedOperand x, w;  // [T, K], [N, K]
  Saved bias;         // where the product replays
  Shape shape;
  bool integers = false;
  const char* name() const override { return "linear"; }
  bool replays() const override { return integers && fast_integer_products(x.peek().device()); }
  Tensor replay() const override {
    return linear_forward(x.operand(name(), 0), w.operand(name(), 1),
                          bias.defined() ? bias.get(name(), 2) : Tensor{}, shape);
  }
  void backward(const Tensor& gy, GradSink& gx) override {
    const Tensor g = flat_rows(gy);  // [T, N]
    if (gx.wants(0)) {
      Tensor dx = gx.alloc(0), rows = flat_rows(dx);
      gradient_product(rows, g, w.get(name(), 1));
      gx.add(0, dx);
    }
    Tensor db = gx.wants(2) ? gx.alloc(2) : Tensor{};
    bool summed = false;
    if (gx.wants(1)) {
      Tensor dw = gx.alloc(1);
      const GemmInput turned = GemmInput(g).t();
      if (db.defined())
        summed = gradient_product_with_sums(dw, db, turned, x.get(name(), 0));
      else
        gradient_product(dw, turned, x.get(name(), 0));
      gx.add(1, dw);
    }
    if (db.defined()) gx.add(2, summed ? db : reduce_to(g, {g.size(1)}));
  }
  void release() override { x.release(), w.release(), bias.release(); }
  std::vector<Tensor> saved() const override { return {x.peek(), w.peek()}; }
};

struct MatmulNode final : Node {
  SavedOperand a, b;
  const char* name() const override { return "matmul"; }
  void backward(const Tensor& gy, GradSink& gx) override {
    if (gx.wants(0)) {
      Tensor da = gx.alloc(0);
      gradient_product(da, gy, b.get(name(), 1).t());
      gx.add(0, da);
    }
    if (gx.wants(1)) {
      Tensor db = gx.alloc(1);
      gradient_product(db, a.get(name(), 0).t(), gy);
      gx.add(1, db);
    }
  }
  void release() override { a.release(), b.release(); }
  std::vector<Tensor> saved() const override { return {a.peek(), b.peek()}; }
};

/// [B, H, N, M] seen as [B / R, R, H, N, M], for a bias [R, H, N, M].
Tensor by_bias(const Tensor& y, const Shape& bias) {
  return y.reshape({y.size(0) / bias[0], bias[0], bias[1], bias[2], bias[3]});
}

/// factor · q · kᵀ of every head, plus the bias: [B, H, N, M].
Tensor scores_forward(const Operand& q, const Operand& k, double factor, const Tensor& bias) {
  const Tensor &a = q.values(), &b = k.values();
  Tensor y = Tensor::empty({b.size(0), b.size(1), a.size(2), b.size(2)}, q.result(), a.device());
  product_nt(y, q.input(), k.input(), {}, factor);
  if (!bias.defined() || y.numel() == 0) return y;
  Tensor to = by_bias(y, bias.shape());
  accumulate({to.mutable_view(), bias.unsqueeze(0).expand(to.shape()).view()}, y.device());
  return y;
}

struct ScoresNode final : Node {
  SavedOperand q, k;  // [B, H, N, D], [B, H, M, D]; [B, 1, N, D] for shared queries
  Saved bias;         // where the product replays
  Shape bias_shape;
  int64_t heads = 1;
  double factor = 1;
  bool shared = false, integers = false;
  const char* name() const override { return "attention_scores"; }
  bool replays() const override { return integers; }
  Tensor replay() const override {
    return scores_forward(q.operand(name(), 0), k.operand(name(), 1), factor,
                          bias.defined() ? bias.get(name(), 2) : Tensor{});
  }
  void backward(const Tensor& gy, GradSink& gx) override {
    if (gx.wants(0)) gx.add(0, shared ? shared_query_gradient(gy, gx.alloc(0)) : query_gradient(gy, gx));
    if (gx.wants(1)) {
      Tensor dk = gx.alloc(1), window = shared ? dk : by_heads(dk, heads);
      gradient_product(window, GemmInput(gy).t(), q.get(name(), 0), factor);
      gx.add(1, dk);
    }
    if (gx.wants(2)) gx.add(2, reduce_to(by_bias(gy, bias_shape), bias_shape));
  }
  Tensor query_gradient(const Tensor& gy, GradSink& gx) const {
    Tensor dq = gx.alloc(0), window = by_heads(dq, heads);
    gradient_product(window, gy, k.get(name(), 1), factor);
    return dq;
  }
  /// The sum over the heads, in their order.
  Tensor shared_query_gradient(const Tensor& gy, Tensor dq) const {
    const Operand keys = k.operand(name(), 1);
    Tensor one = Tensor::empty(dq.shape(), dq.dtype(), dq.device());
    for (int64_t h = 0; h < heads; ++h) {
      Tensor& to = h == 0 ? dq : one;
      gradient_product(to, gy.select(1, h),
                       keys.coded() ? GemmInput(keys.codes.group(h)) : GemmInput(keys.floats.select(1, h)),
                       factor);
      if (h > 0) accumulate({dq.mutable_view(), one.view()}, dq.device());
    }
    return dq;
  }
  void release() override { q.release(), k.release(), bias.release(); }
  std::vector<Tensor> saved() const override { return {q.peek(), k.peek(), bias.peek()}; }
};

/// p · v of every head, merged: [B, N, H·D].
Tensor context_forward(const Operand& p, const Operand& v, int64_t heads) {
  const Tensor& values = p.values();
  Tensor y = Tensor::empty({values.size(0), values.size(2), heads * v.values().size(3)},
                           p.coded() ? DType::f32 : values.dtype(), values.device());
  Tensor window = by_heads(y, heads);
  product_nt(window, p.input(), v.input().t(), {}, 1);
  return y;
}

/// The same in the kernel that makes p; undefined where there is none. Codes of p are kept where asked for.
Tensor deferred_context(const Variable& p, const Operand& v, int64_t heads, Coded* keep) {
  const auto* const later = dynamic_cast<const DeferredProbs*>(p.deferred());
  if (!later || !v.coded()) return {};
  Tensor y = Tensor::empty({p.size(0), p.size(2), heads * v.values().size(3)}, DType::f32, p.device());
  Tensor window = by_heads(y, heads);
  return later->context(window, v, keep) ? y : Tensor{};
}

struct ContextNode final : Node {
  SavedOperand p, v;  // [B, H, N, M], [B, H, M, D]
  int64_t heads = 1;
  bool integers = false;
  const char* name() const override { return "attention_context"; }
  bool replays() const override { return integers; }
  Tensor replay() const override {
    return context_forward(p.operand(name(), 0), v.operand(name(), 1), heads);
  }
  void backward(const Tensor& gy, GradSink& gx) override {
    const Tensor g = by_heads(gy, heads);  // [B, H, N, D]
    if (gx.wants(0)) {
      Tensor dp = gx.alloc(0);
      gradient_product(dp, g, v.get(name(), 1).t());
      gx.add(0, dp);
    }
    if (gx.wants(1)) {
      Tensor dv = gx.alloc(1), window = by_heads(dv, heads);
      gradient_product(window, p.get(name(), 0).t(), g);
      gx.add(1, dv);
    }
  }
  void release() override { p.release(), v.release(); }
  std::vector<Tensor> saved() const override { return {p.peek(), v.peek()}; }
};

}  // namespace

Tensor DeferredScores::values() const { return scores_forward({{}, q}, {{}, k}, factor, bias); }

Variable linear(const Variable& x, const Variable& w, const Variable& b) {
  LOWBIT_CHECK(x.ndim() >= 1 && w.ndim() == 2 && x.size(-1) == w.size(1), shape, "linear",
               "weight.shape[1] must equal x.shape[-1] (got x=", x.str(), ", weight=", w.str(), ")");
  LOWBIT_CHECK(!b.defined() || (b.ndim() == 1 && b.size(0) == w.size(0)), shape, "linear",
               "bias must have one value per output (got bias=", b.str(), ", weight=", w.str(), ")");
  LOWBIT_CHECK(x.dtype() == w.dtype() && (!b.defined() || b.dtype() == w.dtype()), dtype, "linear",
               "operands must share a dtype (got x=", x.str(), ", weight=", w.str(), ")");
  Shape shape = x.shape();
  shape.set(-1, w.size(0));
  const Operand xi = activation(flat_rows(x)), wi = operand(w);
  const Tensor bias = b.defined() ? b.data().packed() : Tensor{};
  Tensor y = linear_forward(xi, wi, bias, shape);
  std::shared_ptr<LinearNode> node;
  if (needs_grad({x, w, b})) {
    node = std::make_shared<LinearNode>();
    node->shape = shape, node->integers = on_integers(xi.input(), wi.input());
    if (w.requires_grad() || node->integers) node->x.set(xi);
    if (x.requires_grad() || node->integers) node->w.set(wi);
    if (bias.defined() && node->integers) node->bias.set(bias);
  }
  return record(std::move(y), std::move(node), {x, w, b});
}

Variable matmul(const Variable& a, const Variable& b) {
  bool fits = a.ndim() == b.ndim() && a.ndim() >= 2 && a.size(-1) == b.size(-2) && a.dtype() == b.dtype();
  for (int d = 0; fits && d < a.ndim() - 2; ++d) fits = a.size(d) == b.size(d);
  LOWBIT_CHECK(fits, shape, "matmul",
               "a.shape[-1] must equal b.shape[-2] and leading dimensions must agree (got a=", a.str(),
               ", b=", b.str(), ")");
  Shape shape = a.shape();
  shape.set(-1, b.size(-1));
  const Operand ai = operand(a), bi = operand(b);
  Tensor y = Tensor::empty(shape, a.dtype(), a.device());
  gemm(y, ai.input(), bi.input(), {}, 1, 0, {.library = context().library_products});
  std::shared_ptr<MatmulNode> node;
  if (needs_grad({a, b})) {
    node = std::make_shared<MatmulNode>();
    node->a.set(ai), node->b.set(bi);
  }
  return record(std::move(y), std::move(node), {a, b});
}

Variable attention_scores(const Variable& q, const Variable& k, int64_t heads, double factor,
                          const Variable& bias) {
  const bool shared = k.ndim() == 4;
  LOWBIT_CHECK(q.ndim() == 3 && q.size(0) == k.size(0) && q.size(-1) == k.size(-1) && heads > 0 &&
                   (shared ? k.size(1) == heads : k.ndim() == 3 && q.size(2) % heads == 0),
               shape, "attention_scores",
               "q and k must be [B, N, C] with heads dividing C, or k [B, heads, N, C] (got q=", q.str(),
               ", k=", k.str(), ", heads=", heads, ")");
  const Shape shape{q.size(0), heads, q.size(1), k.size(-2)};
  LOWBIT_CHECK(
      !bias.defined() || (bias.ndim() == 4 && bias.size(0) > 0 && shape[0] % bias.size(0) == 0 &&
                          bias.size(1) == heads && bias.size(2) == shape[2] && bias.size(3) == shape[3]),
      shape, "attention_scores", "bias must be [R, heads, N, M] with R dividing B (got bias=", bias.str(),
      ", scores=", shape.str(), ")");
  LOWBIT_CHECK(!bias.defined() || bias.dtype() == q.dtype(), dtype, "attention_scores",
               "bias must have the dtype of q (got bias=", bias.str(), ", q=", q.str(), ")");
  const Operand qi = activation(shared ? by_heads(q, 1) : by_heads(q, heads)),
                ki = activation(shared ? operand(k) : by_heads(k, heads));
  const bool integers = on_integers(qi.input(), ki.input());
  const Tensor added = bias.defined() ? bias.data().packed() : Tensor{};
  std::shared_ptr<ScoresNode> node;
  if (needs_grad({q, k, bias})) {
    node = std::make_shared<ScoresNode>();
    node->q.set(qi), node->k.set(ki), node->heads = heads, node->factor = factor, node->shared = shared;
    node->integers = integers;
    if (bias.defined()) node->bias_shape = bias.shape();
    if (bias.defined() && integers) node->bias.set(added);
  }
  if (!integers || !may_defer())
    return record(scores_forward(qi, ki, factor, added), std::move(node), {q, k, bias});
  auto later = std::make_shared<DeferredScores>();
  later->q = qi.codes, later->k = ki.codes, later->factor = factor, later->bias = added;
  return record(std::move(later), shape, q.device(), std::move(node), {q, k, bias});
}

Variable attention_context(const Variable& p, const Variable& v, int64_t heads) {
  LOWBIT_CHECK(p.ndim() == 4 && v.ndim() == 3 && p.size(0) == v.size(0) && p.size(1) == heads &&
                   p.size(3) == v.size(1) && v.size(2) % heads == 0,
               shape, "attention_context",
               "p must be [B, H, N, M] and v [B, M, C] with H dividing C (got p=", p.str(), ", v=", v.str(),
               ")");
  const Operand vi = activation(by_heads(v, heads));  // [B, H, M, D]
  const bool keep = needs_grad({p, v});
  Operand pi;
  Tensor y = deferred_context(p, vi, heads, keep ? &pi.codes : nullptr);
  if (!y.defined()) pi = operand(p), y = context_forward(pi, vi, heads);
  std::shared_ptr<ContextNode> node;
  if (keep) {
    node = std::make_shared<ContextNode>();
    node->p.set(pi), node->v.set(vi), node->heads = heads;
    node->integers = on_integers(pi.input(), vi.input().t());
  }
  return record(std::move(y), std::move(node), {p, v});
}

}  // namespace lowbit
