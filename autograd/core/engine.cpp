#include <algorithm>
#include <atomic>
#include <cmath>
#include <queue>
#include <set>
#include <utility>

#include "autograd/core/grad_hook.h"
#include "autograd/core/node.h"
#include "tensor/core/context.h"
#include "tensor/engine/accumulate.h"

namespace lowbit {
namespace {

std::atomic<uint64_t> next_seq{1};
std::function<void(const GradMeta&)> gradient_hook;

/// a += b of equal shape.
void add_into(Tensor& a, const Tensor& b) { accumulate({a.mutable_view(), b.view()}, a.device()); }

bool same_memory(const Tensor& a, const Tensor& b) { return a.defined() && a.view().data == b.view().data; }

template <class T>
void check_finite_typed(const char* op, const Tensor& y) {
  const Tensor p = y.to(Device{}).packed();
  const T* v = p.data_const<T>();
  int64_t bad = 0, first = -1;
  for (int64_t i = 0; i < p.numel(); ++i)
    if (!std::isfinite(v[i])) {
      ++bad;
      if (first < 0) first = i;
    }
  if (!bad) return;
  Shape index = y.shape();
  int64_t rest = first;
  for (int d = y.ndim() - 1; d >= 0; --d) {
    index.set(d, rest % y.size(d));
    rest /= y.size(d);
  }
  fail(ErrorKind::numeric, op, str_cat(bad, " non-finite of ", p.numel(), " values, first at ", index.str()));
}

void check_finite(const char* op, const Tensor& y) {
  if (y.dtype() == DType::f32)
    check_finite_typed<float>(op, y);
  else if (y.dtype() == DType::f64)
    check_finite_typed<double>(op, y);
}

void attach(GradMeta& meta, std::shared_ptr<Node> node, std::span<const Variable> inputs) {
  if (!node || !needs_grad(inputs)) return;
  node->seq = next_seq.fetch_add(1);
  for (const Variable& v : inputs) node->inputs.push_back(v.defined() ? v.meta() : nullptr);
  meta.requires_grad = true;
  meta.producer = std::move(node);
}

/// Of what Variable::stored() gave; no variable is bf16 to the tape, so the dtype tells.
Tensor widened(const Tensor& t) { return t.dtype() == DType::bf16 ? t.cast(DType::f32) : t; }
Variable variable_of(const Tensor& stored, bool requires_grad) {
  return stored.dtype() == DType::bf16 ? Variable(Narrow{stored}, requires_grad)
                                       : Variable(stored, requires_grad);
}

struct StraightThroughNode final : Node {
  const char* name() const override { return "straight_through"; }
  void backward(const Tensor& gy, GradSink& gx) override { gx.add(0, gy); }
  void release() override {}
  std::vector<Tensor> saved() const override { return {}; }
};

struct RecomputeNode final : Node {
  std::function<Variable(std::span<const Variable>)> f;
  std::vector<Saved> values;
  std::vector<bool> differentiable;
  uint64_t rng = 0;
  const char* name() const override { return "recompute"; }
  void backward(const Tensor& gy, GradSink& gx) override {
    std::vector<Variable> local;
    for (size_t i = 0; i < values.size(); ++i)
      local.push_back(variable_of(values[i].get(name(), int(i)), bool(differentiable[i])));
    Generator& g = context().generator;
    const uint64_t now = g.state();
    g.set_state(rng);
    const Variable y = f(local);
    if (y.requires_grad()) y.backward(gy);
    g.set_state(now);
    for (size_t i = 0; i < local.size(); ++i)
      if (differentiable[i] && local[i].grad().defined()) gx.add(int(i), local[i].grad());
  }
  void release() override {
    for (Saved& s : values) s.release();
    f = nullptr;
  }
  std::vector<Tensor> saved() const override {
    std::vector<Tensor> all;
    for (const Saved& s : values) all.push_back(s.peek());
    return all;
  }
};

}  // namespace

const Tensor& Saved::get(const char* op, int index) const {
  LOWBIT_CHECK(!released_, value, op, "saved input ", index,
               " was already released; pass retain=true to the first backward");
  LOWBIT_CHECK(t_.version() == version_, value, op, "saved input ", index,
               " was modified in place after it was saved (version ", t_.version(), ", saved ", version_,
               ")");
  return t_;
}

bool can_replay(const Variable& x) {
  const std::shared_ptr<Node>& producer = x.meta()->producer;
  return producer && producer->replays();
}
bool rows_sum_to_one(const Variable& x) {
  const std::shared_ptr<Node>& producer = x.meta()->producer;
  return producer && producer->rows_sum_to_one();
}

void SavedValue::set(const Variable& x) {
  if (can_replay(x))
    producer_ = x.meta()->producer;
  else
    kept_.set(x.stored().packed());
}
Tensor SavedValue::stored(const char* op, int index) const {
  return producer_ ? producer_->replay() : kept_.get(op, index);
}
Tensor SavedValue::get(const char* op, int index) const { return widened(stored(op, index)); }

const Coded& SavedCodes::get(const char* op, int index) const {
  LOWBIT_CHECK(c_.defined(), value, op, "saved input ", index,
               " was already released; pass retain=true to the first backward");
  return c_;
}

bool GradSink::wants(int input) const {
  const auto& m = inputs_[size_t(input)];
  return m && m->requires_grad;
}

Tensor GradSink::alloc(int input) const {
  const GradMeta& m = *inputs_[size_t(input)];
  if (m.fixed_buffer && !m.has_grad) return m.grad;
  return Tensor::empty(m.shape, m.dtype, m.device);
}

Tensor& GradSink::own(GradMeta& m) {
  if (!m.fixed_buffer && m.grad.storage().use_count() > 1) m.grad = m.grad.clone();
  return m.grad;
}

void GradSink::add(int input, Tensor g) {
  if (!wants(input)) return;
  GradMeta& m = *inputs_[size_t(input)];
  LOWBIT_ASSERT(g.shape() == m.shape && g.dtype() == m.dtype);
  if (m.has_grad) {
    add_into(own(m), g.packed());
  } else if (m.fixed_buffer) {
    if (!same_memory(m.grad, g)) m.grad.copy_from(g);
    m.has_grad = true;
  } else {
    m.grad = g.packed();
    m.has_grad = true;
  }
  if (m.fixed_buffer && gradient_hook) gradient_hook(m);
}

Tensor GradSink::take(int input) {
  GradMeta& m = *inputs_[size_t(input)];
  if (!wants(input) || !m.has_grad || !m.producer) return {};
  m.has_grad = false;
  return std::exchange(m.grad, Tensor{});
}

void GradSink::add_part(int input, const std::function<Tensor(const Tensor&)>& part, const Tensor& g) {
  if (!wants(input)) return;
  GradMeta& m = *inputs_[size_t(input)];
  if (m.has_grad) {
    Tensor window = part(own(m));
    add_into(window, g);
  } else {
    m.grad = alloc(input);
    m.grad.fill(0);
    Tensor window = part(m.grad);
    window.copy_from(g);
    m.has_grad = true;
  }
  if (m.fixed_buffer && gradient_hook) gradient_hook(m);
}

void GradSink::reach(int input) {
  if (wants(input)) inputs_[size_t(input)]->has_grad = true;
}

void set_gradient_hook(std::function<void(const GradMeta&)> hook) { gradient_hook = std::move(hook); }

bool needs_grad(std::span<const Variable> inputs) {
  return grad_enabled() &&
         std::any_of(inputs.begin(), inputs.end(), [](const Variable& v) { return v.requires_grad(); });
}
bool needs_grad(std::initializer_list<Variable> inputs) {
  return needs_grad(std::span<const Variable>(inputs.begin(), inputs.size()));
}

Variable record(Tensor y, std::shared_ptr<Node> node, std::span<const Variable> inputs) {
  if (context().check_finite && node) check_finite(node->name(), y);
  Variable v(std::move(y));
  attach(*v.meta(), std::move(node), inputs);
  return v;
}
Variable record(Coded y, std::shared_ptr<Node> node, std::span<const Variable> inputs) {
  Variable v(std::move(y));
  attach(*v.meta(), std::move(node), inputs);
  return v;
}
Variable record(std::shared_ptr<const Deferred> y, const Shape& shape, Device device,
                std::shared_ptr<Node> node, std::initializer_list<Variable> inputs) {
  Variable v(std::move(y), shape, device);
  attach(*v.meta(), std::move(node), std::span<const Variable>(inputs.begin(), inputs.size()));
  return v;
}
Variable record(Narrow y, std::shared_ptr<Node> node, std::initializer_list<Variable> inputs) {
  if (context().check_finite && node) check_finite(node->name(), y.values.cast(DType::f32));
  Variable v(std::move(y));
  attach(*v.meta(), std::move(node), std::span<const Variable>(inputs.begin(), inputs.size()));
  return v;
}
bool may_defer() { return !context().check_finite; }
Variable record(Tensor y, std::shared_ptr<Node> node, std::initializer_list<Variable> inputs) {
  return record(std::move(y), std::move(node), std::span<const Variable>(inputs.begin(), inputs.size()));
}
Variable record(Coded y, std::shared_ptr<Node> node, std::initializer_list<Variable> inputs) {
  return record(std::move(y), std::move(node), std::span<const Variable>(inputs.begin(), inputs.size()));
}

void Variable::backward(const Tensor& gy, bool retain) const {
  LOWBIT_ASSERT(impl_);
  GradMeta& root = *impl_->meta;
  LOWBIT_CHECK(root.requires_grad, value, "backward",
               "the variable must depend on something that requires a gradient (got ", str(), ")");
  LOWBIT_CHECK(gy.defined() || numel() == 1, shape, "backward", "gy may be left out for scalars only (got ",
               str(), ")");
  Tensor seed = gy.defined() ? gy.packed() : Tensor::full(shape(), 1, dtype(), device());
  LOWBIT_CHECK(seed.shape() == shape(), shape, "backward",
               "gy must have the shape of the variable (got gy=", seed.str(), ", y=", str(), ")");
  if (!root.producer) {  // a leaf is its own gradient
    const std::shared_ptr<GradMeta> self[] = {impl_->meta};
    GradSink(self).add(0, seed);
    return;
  }
  root.grad = seed, root.has_grad = true;
  // Creation order is a topological order: always take the youngest node that was reached.
  const auto younger = [](const GradMeta* a, const GradMeta* b) {
    return a->producer->seq < b->producer->seq;
  };
  std::priority_queue<GradMeta*, std::vector<GradMeta*>, decltype(younger)> ready(younger);
  std::set<GradMeta*> queued{&root};
  ready.push(&root);
  std::vector<std::shared_ptr<GradMeta>> keep{
      impl_->meta};  // metas must outlive the release of their consumers
  while (!ready.empty()) {
    GradMeta& m = *ready.top();
    ready.pop();
    const std::shared_ptr<Node> node = m.producer;
    LOWBIT_CHECK(!node->inputs.empty(), value, node->name(),
                 "the tape was already released; pass retain=true to the first backward");
    const Tensor g = std::move(m.grad);
    m.grad = Tensor{}, m.has_grad = false;
    GradSink sink(node->inputs);
    node->backward(g, sink);
    for (const auto& in : node->inputs)
      if (in && in->has_grad && in->producer && queued.insert(in.get()).second) {
        ready.push(in.get());
        keep.push_back(in);
      }
    if (!retain) {
      node->release();
      node->inputs.clear();
    }
  }
}

Variable straight_through(const Variable& x, Tensor value) {
  LOWBIT_CHECK(value.shape() == x.shape(), shape, "straight_through",
               "value must have the shape of x (got x=", x.str(), ", value=", value.str(), ")");
  return record(std::move(value), std::make_shared<StraightThroughNode>(), {x});
}

Variable recompute(const std::function<Variable(std::span<const Variable>)>& f,
                   std::span<const Variable> inputs) {
  auto node = std::make_shared<RecomputeNode>();
  node->rng = context().generator.state();
  Variable y;
  {
    NoGrad off;
    y = f(inputs);
  }
  if (!grad_enabled()) return y;
  node->f = f;
  for (const Variable& v : inputs) {
    node->values.emplace_back(v.stored());
    node->differentiable.push_back(v.requires_grad());
  }
  // Parameters captured by f may need gradients although no input does: the node is always kept.
  Variable out = variable_of(y.stored(), false);
  node->seq = next_seq.fetch_add(1);
  for (const Variable& v : inputs) node->inputs.push_back(v.meta());
  out.meta()->requires_grad = true;
  out.meta()->producer = node;
  return out;
}

std::map<std::string, size_t> saved_memory(const Variable& root) {
  std::set<const Node*> seen;
  std::vector<const Node*> nodes;
  std::vector<const GradMeta*> stack{root.meta().get()};
  while (!stack.empty()) {
    const GradMeta* m = stack.back();
    stack.pop_back();
    if (!m || !m->producer || !seen.insert(m->producer.get()).second) continue;
    nodes.push_back(m->producer.get());
    for (const auto& in : m->producer->inputs) stack.push_back(in.get());
  }
  std::sort(nodes.begin(), nodes.end(), [](const Node* a, const Node* b) { return a->seq < b->seq; });
  std::set<const Storage*> counted;
  std::map<std::string, size_t> bytes;
  for (const Node* n : nodes) {
    size_t& sum = bytes[n->name()];
    for (const Tensor& t : n->saved())
      if (t.defined() && counted.insert(t.storage().get()).second) sum += t.storage()->bytes();
  }
  return bytes;
}

}  // namespace lowbit
