#include "autograd/ops/linear.h"

#include "autograd/ops/deferred.h"
#include "autograd/ops/narrow.h"
#include "autograd/ops/operand.h"
#include "autograd/ops/reduce.h"
#include "tensor/engine/accumulate.h"
#include "tensor/engine/isa.h"

namespace lowbit {
namespace {

Operand operand(const Variable& x) { return x.coded() ? Operand{{}, *x.coded()} : Operand{x.stored(), {}}; }

/// [..., K] seen as [T, K].
Tensor flat_rows(const Tensor& t) {
  const int64_t k = t.size(-1);
  return t.packed().reshape({k ? t.numel() / k : 0, k});
}

/// The same of an operand; a scale per token or sample becomes one per row. A scale along K does not factor
/// out of a product over K: such codes become floats.
Operand flat_rows(const Variable& x) {
  const Coded* c = x.coded();
  if (!c || c->by_groups() || c->scale_axis == -1) return {flat_rows(x.stored()), {}};
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

/// Rows [begin, end) of a weight.
Operand rows_of(const Operand& w, int64_t begin, int64_t end) {
  if (!w.coded()) return {w.floats.slice(0, begin, end), {}};
  Operand r = w;
  r.codes.codes = w.codes.codes.slice(0, begin, end);
  if (!w.codes.per_tensor() && w.codes.scale_axis == -2) r.codes.scale = w.codes.scale.slice(0, begin, end);
  return r;
}

/// [B, N, H·D] seen as [B, H, N, D].
Tensor by_heads(const Tensor& t, int64_t heads) {
  return t.packed().reshape({t.size(0), t.size(1), heads, t.size(2) / heads}).permute({0, 2, 1, 3});
}

/// The same of an operand; every head gets its part of what runs along H·D.
Operand by_heads(const Variable& x, int64_t heads) {
  const Coded* c = x.coded();
  if (!c) return {by_heads(x.stored(), heads), {}};
  const auto parts = [heads](const Tensor& t) { return t.packed().reshape({heads, t.numel() / heads}); };
  Operand r{{}, *c};
  r.codes.codes = by_heads(c->codes, heads);
  if (c->scale_axis == -1) r.codes.scale = parts(c->scale);
  if (c->offset.defined() && c->offset.numel() > 1) r.codes.offset = parts(c->offset);
  return r;
}

/// Rows of x [T, K] times wᵀ, plus the bias where there is one, shaped like y; bf16 where `narrow`.
struct LinearProduct {
  Operand w;
  Tensor bias;
  Shape shape;
  bool narrow = false;
};
std::vector<Tensor> linear_forward(const Operand& x, std::span<const LinearProduct> products) {
  std::vector<Tensor> all;
  CodedProducts coded;
  const bool together = products.size() <= size_t{kCodedTogether};
  for (const LinearProduct& p : products) {
    Tensor y = Tensor::empty(p.shape, p.narrow ? DType::bf16 : x.result(), x.values().device()),
           rows = flat_rows(y);
    if (together && on_integers(x.input(), p.w.input()))
      coded.product[coded.count++] = coded_gemm_args(rows, x.input(), p.w.input(), p.bias);
    else
      product_nt(rows, x.input(), p.w.input(), p.bias, 1);
    all.push_back(std::move(y));
  }
  if (coded.count) coded_products(coded, x.values().device());
  return all;
}

/// Several layers of one input, or runs of rows of one layer: outputs of which each has a node of its own
/// (LinearOutputNode) that leaves its gradient here; backward follows when all have come. With one output it
/// is that output's node itself.
///
/// An integer product is exact, and cheap to repeat where there is an instruction for it: whoever needs its
/// result in backward need not keep it. Without one, repeating them would cost a tenth of a step.
struct LinearNode final : Node {
  /// An output: rows [begin, end) of a layer.
  struct Output {
    int layer = 0;
    int64_t begin = 0, end = 0;
    SavedOperand w;  // [N, K]
    Saved bias;      // where the product replays
    Shape shape;
    Tensor gradient, again;  // until backward runs; made with the others and not yet asked for
  };
  SavedOperand x;  // [T, K]
  std::vector<Output> outputs;
  int layers = 1;
  bool integers = false;
  const char* name() const override { return "linear"; }
  bool replays() const override { return integers && fast_integer_products(x.peek().device()); }
  Tensor replay() const override { return const_cast<LinearNode*>(this)->replay(0); }
  /// On a GPU all outputs in one launch, since each of them is asked for.
  Tensor replay(size_t index) {
    if (outputs[index].again.defined()) return std::move(outputs[index].again);
    const bool all = x.peek().device().is_cuda();
    std::vector<LinearProduct> products;
    for (size_t i = all ? 0 : index; i < (all ? outputs.size() : index + 1); ++i) {
      const Output& o = outputs[i];
      products.push_back(
          {o.w.operand(name(), 1), o.bias.defined() ? o.bias.get(name(), 2) : Tensor{}, o.shape});
    }
    std::vector<Tensor> made = linear_forward(x.operand(name(), 0), products);
    for (size_t i = 0; all && i < outputs.size(); ++i) outputs[i].again = made[i];
    outputs[index].again = Tensor{};
    return made[all ? index : 0];
  }
  /// x and the layers' w and b are inputs 0, 1, 2, 3, 4, …; the gradients of x are added up from the last
  /// output to the first, in the order in which they would arrive one by one.
  void backward(const Tensor& gy, GradSink& gx) override {
    if (gy.defined()) outputs[0].gradient = gy;
    GradientProducts products;
    std::vector<Tensor> d(size_t(1 + 2 * layers));
    for (int i = 0; i < 1 + 2 * layers; ++i)
      if (gx.wants(i)) d[size_t(i)] = gx.alloc(i);
    bool more = false;
    for (size_t i = outputs.size(); i-- > 0 && d[0].defined();) {
      if (!outputs[i].gradient.defined()) continue;
      products.add(flat_rows(d[0]), flat_rows(outputs[i].gradient), outputs[i].w.get(name(), 1), 1, more);
      more = true;
    }
    for (Output& o : outputs) {
      Tensor &dw = d[size_t(1 + 2 * o.layer)], &db = d[size_t(2 + 2 * o.layer)];
      const auto window = [&o](const Tensor& all) {
        return o.begin == 0 && o.end == all.size(0) ? all : all.slice(0, o.begin, o.end);
      };
      if (!o.gradient.defined()) {  // an output that nothing came back to
        if (dw.defined()) window(dw).fill(0);
        if (db.defined()) window(db).fill(0);
        continue;
      }
      const Tensor g = flat_rows(o.gradient);  // [T, N]
      if (dw.defined()) products.add(window(dw), GemmInput(g).t(), x.get(name(), 0));
      if (db.defined()) products.sum_rows(window(db), g);
    }
    products.run();
    for (Output& o : outputs) o.gradient = o.again = Tensor{};
    for (int i = 0; i < 1 + 2 * layers; ++i)
      if (d[size_t(i)].defined()) gx.add(i, d[size_t(i)]);
  }
  void release() override {
    x.release();
    for (Output& o : outputs) o.w.release(), o.bias.release(), o.gradient = o.again = Tensor{};
  }
  std::vector<Tensor> saved() const override {
    std::vector<Tensor> all{x.peek()};
    for (const Output& o : outputs) all.push_back(o.w.peek());
    return all;
  }
};

struct LinearOutputNode final : Node {
  std::shared_ptr<LinearNode> all;
  size_t index = 0;
  const char* name() const override { return "linear"; }
  bool replays() const override { return all->replays(); }
  Tensor replay() const override { return all->replay(index); }
  void backward(const Tensor& gy, GradSink& gx) override {
    all->outputs[index].gradient = gy;
    gx.reach(0);
  }
  void release() override {}
  std::vector<Tensor> saved() const override { return {}; }
};

struct MatmulNode final : Node {
  SavedOperand a, b;
  const char* name() const override { return "matmul"; }
  void backward(const Tensor& gy, GradSink& gx) override {
    GradientProducts products;
    Tensor da, db;
    if (gx.wants(0)) products.add(da = gx.alloc(0), gy, b.get(name(), 1).t());
    if (gx.wants(1)) products.add(db = gx.alloc(1), a.get(name(), 0).t(), gy);
    products.run();
    if (da.defined()) gx.add(0, da);
    if (db.defined()) gx.add(1, db);
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
    GradientProducts products;
    Tensor dq, dk;
    if (gx.wants(0)) dq = gx.alloc(0);
    if (gx.wants(1)) dk = gx.alloc(1);
    if (dq.defined() && !shared) products.add(by_heads(dq, heads), gy, k.get(name(), 1), factor);
    if (dk.defined())
      products.add(shared ? dk : by_heads(dk, heads), GemmInput(gy).t(), q.get(name(), 0), factor);
    products.run();
    if (dq.defined()) gx.add(0, shared ? shared_query_gradient(gy, dq) : dq);
    if (dk.defined()) gx.add(1, dk);
    if (gx.wants(2)) gx.add(2, reduce_to(by_bias(gy, bias_shape), bias_shape));
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
  Tensor y = Tensor::empty({values.size(0), values.size(2), heads * v.values().size(3)}, p.result(),
                           values.device());
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
    GradientProducts products;
    Tensor dp, dv;
    if (gx.wants(0)) products.add(dp = gx.alloc(0), g, v.get(name(), 1).t());
    if (gx.wants(1)) products.add(by_heads(dv = gx.alloc(1), heads), p.get(name(), 0).t(), g);
    products.run();
    if (dp.defined()) gx.add(0, dp);
    if (dv.defined()) gx.add(1, dv);
  }
  void release() override { p.release(), v.release(); }
  std::vector<Tensor> saved() const override { return {p.peek(), v.peek()}; }
};

}  // namespace

Tensor DeferredScores::values() const { return scores_forward({{}, q}, {{}, k}, factor, bias); }

Variable linear(const Variable& x, const Variable& w, const Variable& b) {
  const LinearLayer one[] = {{w, b}};
  return linear_outputs(x, one)[0];
}

std::vector<Variable> linear_outputs(const Variable& x, std::span<const LinearLayer> layers) {
  const auto node = std::make_shared<LinearNode>();
  std::vector<Variable> inputs{x};
  std::vector<LinearProduct> products;
  const Operand xi = activation(flat_rows(x));
  node->layers = int(layers.size());
  node->integers = true;
  bool any_weight = false;
  for (size_t l = 0; l < layers.size(); ++l) {
    const auto& [w, b, parts, narrow] = layers[l];
    LOWBIT_CHECK(x.ndim() >= 1 && w.ndim() == 2 && x.size(-1) == w.size(1), shape, "linear",
                 "weight.shape[1] must equal x.shape[-1] (got x=", x.str(), ", weight=", w.str(), ")");
    LOWBIT_CHECK(!b.defined() || (b.ndim() == 1 && b.size(0) == w.size(0)), shape, "linear",
                 "bias must have one value per output (got bias=", b.str(), ", weight=", w.str(), ")");
    LOWBIT_CHECK(x.dtype() == w.dtype() && (!b.defined() || b.dtype() == w.dtype()), dtype, "linear",
                 "operands must share a dtype (got x=", x.str(), ", weight=", w.str(), ")");
    LOWBIT_CHECK(parts > 0 && w.size(0) % parts == 0, shape, "linear",
                 "rows must be cut into equal parts (got ", parts, " of weight=", w.str(), ")");
    inputs.push_back(w), inputs.push_back(b);
    any_weight = any_weight || w.requires_grad();
    const Operand all = operand(w);
    const bool rounded = narrow && !x.coded() && stores_narrow(x);
    Tensor bias = b.defined() ? b.data().packed() : Tensor{};
    if (rounded && bias.defined()) bias = bias.cast(DType::bf16);
    const int64_t n = w.size(0) / parts;
    for (int64_t p = 0; p < parts; ++p) {
      LinearProduct one{all, bias, x.shape(), rounded};
      one.shape.set(-1, n);
      if (parts > 1) one.w = rows_of(all, p * n, (p + 1) * n);
      if (parts > 1 && bias.defined()) one.bias = bias.slice(0, p * n, (p + 1) * n);
      node->integers = node->integers && on_integers(xi.input(), one.w.input());
      products.push_back(std::move(one));
      LinearNode::Output& o = node->outputs.emplace_back();
      o.layer = int(l), o.begin = p * n, o.end = (p + 1) * n, o.shape = products.back().shape;
    }
  }
  std::vector<Tensor> values = linear_forward(xi, products);
  const bool keep = needs_grad(inputs);
  if (keep) {
    if (any_weight || node->integers) node->x.set(xi);
    for (size_t i = 0; i < products.size(); ++i) {
      LinearNode::Output& o = node->outputs[i];
      if (x.requires_grad() || node->integers) o.w.set(products[i].w);
      if (products[i].bias.defined() && node->integers) o.bias.set(products[i].bias);
    }
  }
  if (values.size() == 1 && products[0].narrow)
    return {record(Narrow{std::move(values[0])}, keep ? node : nullptr, {x, layers[0].w, layers[0].b})};
  if (values.size() == 1) return {record(std::move(values[0]), keep ? node : nullptr, inputs)};
  const Variable together = record(Tensor::empty({0}, x.dtype(), x.device()), keep ? node : nullptr, inputs);
  std::vector<Variable> all;
  for (size_t i = 0; i < values.size(); ++i) {
    std::shared_ptr<LinearOutputNode> own;
    if (keep) own = std::make_shared<LinearOutputNode>(), own->all = node, own->index = i;
    all.push_back(products[i].narrow ? record(Narrow{std::move(values[i])}, std::move(own), {together})
                                     : record(std::move(values[i]), std::move(own), {together}));
  }
  return all;
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
