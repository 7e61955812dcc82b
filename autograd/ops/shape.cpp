#include "autograd/ops/shape.h"

#include "autograd/core/node.h"
#include "autograd/ops/reduce.h"

namespace lowbit {
namespace {

using Map = std::function<Tensor(const Tensor&)>;

/// A move is a map of tensors; the node keeps only the inverse map, or, for a part of its input, the map
/// itself. It can be made again where its source can.
struct MoveNode final : Node {
  const char* op;
  Map inverse;  // gradient of the output → gradient of the input
  Map part;     // instead of it: gradient of the input → the view of it that belongs to the output
  Map forward;
  SavedValue source;
  const char* name() const override { return op; }
  void backward(const Tensor& gy, GradSink& gx) override {
    part ? gx.add_part(0, part, gy) : gx.add(0, inverse(gy));
  }
  bool replays() const override { return forward != nullptr; }
  Tensor replay() const override { return forward(source.get(op, 0)).packed(); }
  void release() override { inverse = part = forward = nullptr, source.release(); }
  std::vector<Tensor> saved() const override { return {}; }
};

/// Offsets per channel would have to move too; only codes with one scale and one offset travel.
bool travels(const Coded* c) {
  return c && c->per_tensor() && (!c->offset.defined() || c->offset.numel() == 1);
}

/// Without an inverse: the output is a view of the input.
Variable move(const char* op, const Variable& x, const Map& forward, Map inverse = {}) {
  std::shared_ptr<MoveNode> node;
  if (needs_grad({x})) {
    node = std::make_shared<MoveNode>();
    node->op = op;
    inverse ? node->inverse = std::move(inverse) : node->part = forward;
    if (can_replay(x)) node->forward = forward, node->source.set(x);
  }
  if (const Coded* c = x.coded(); travels(c)) {
    Coded y = *c;
    y.codes = forward(c->codes);
    return record(std::move(y), std::move(node), {x});
  }
  if (x.narrow()) return record(Narrow{forward(*x.narrow())}, std::move(node), {x});
  return record(forward(x.data()), std::move(node), {x});
}

Tensor reshaped(const Tensor& t, const Shape& s) {
  return t.contiguous() ? t.reshape(s) : t.packed().reshape(s);
}

/// Codes with a scale per row, moved to other leading dimensions that end in the same rows, or in groups of
/// them; undefined for other moves.
Coded reshaped_rows(const Coded& c, const Shape& to) {
  const int nd = to.ndim();
  if (nd < 2 || c.codes.ndim() < 2 || to[-1] != c.codes.size(-1) || c.by_groups()) return {};
  Coded y = c;
  if (const int64_t n = c.scale.numel(); !c.per_tensor()) {
    const bool grouped = nd > 2 && to[-2] != n && to[-3] * to[-2] == n;
    if (c.scale_axis == -2 && grouped)
      y.scale = c.scale.packed().reshape({to[-3], to[-2]});
    else if (c.scale_axis != -1 && (c.scale_axis != -2 || to[-2] != n))
      return {};
  }
  y.codes = reshaped(c.codes, to);
  return y;
}

struct ConcatNode final : Node {
  int dim = 0;
  std::vector<int64_t> extents;
  const char* name() const override { return "concat"; }
  void backward(const Tensor& gy, GradSink& gx) override {
    int64_t at = 0;
    for (size_t i = 0; i < extents.size(); ++i) {
      if (gx.wants(int(i))) gx.add(int(i), gy.slice(dim, at, at + extents[i]).clone());
      at += extents[i];
    }
  }
  void release() override {}
  std::vector<Tensor> saved() const override { return {}; }
};

int normal_dim(const char* op, const Variable& x, int dim) {
  const int d = dim < 0 ? dim + x.ndim() : dim;
  LOWBIT_CHECK(d >= 0 && d < x.ndim(), shape, op, "dim must lie inside the shape (got dim=", dim,
               ", x=", x.str(), ")");
  return d;
}

/// [B, C, H, W] seen as [B, H/P, W/P, C, P, P]
Tensor patch_view(const Tensor& x, int64_t p) {
  const int64_t b = x.size(0), c = x.size(1), h = x.size(2) / p, w = x.size(3) / p;
  return x.reshape({b, c, h, p, w, p}).permute({0, 2, 4, 1, 3, 5});
}

}  // namespace

Variable reshape(const Variable& x, std::vector<int64_t> dims) {
  int64_t known = 1, open = -1;
  for (size_t i = 0; i < dims.size(); ++i) {
    if (dims[i] == -1 && open < 0)
      open = int64_t(i);
    else
      known *= dims[i];
  }
  const int64_t n = x.numel();
  if (open >= 0 && known > 0 && n % known == 0) dims[size_t(open)] = n / known, known = n;
  LOWBIT_CHECK(known == n && (open < 0 || dims[size_t(open)] >= 0), shape, "reshape",
               "number of elements must stay (got x=", x.str(), ")");
  const Shape to{std::span<const int64_t>(dims)}, from = x.shape();
  if (const Coded* c = x.coded(); c && !travels(c))
    if (Coded y = reshaped_rows(*c, to); y.defined()) {
      auto node = std::make_shared<MoveNode>();
      node->op = "reshape", node->inverse = [from](const Tensor& g) { return reshaped(g, from); };
      return record(std::move(y), std::move(node), {x});
    }
  return move(
      "reshape", x, [to](const Tensor& t) { return reshaped(t, to); },
      [from](const Tensor& g) { return reshaped(g, from); });
}

Variable permute(const Variable& x, std::initializer_list<int> dims) {
  LOWBIT_CHECK(int(dims.size()) == x.ndim(), shape, "permute",
               "one entry per dimension is needed (got x=", x.str(), ")");
  const std::vector<int> order(dims);
  std::vector<int> inverse(dims.size());
  for (size_t i = 0; i < order.size(); ++i) inverse[size_t(normal_dim("permute", x, order[i]))] = int(i);
  return move(
      "permute", x, [order](const Tensor& t) { return t.permute(order); },
      [inverse](const Tensor& g) { return g.permute(inverse).packed(); });
}

Variable transpose(const Variable& x, int a, int b) {
  a = normal_dim("transpose", x, a), b = normal_dim("transpose", x, b);
  return move(
      "transpose", x, [a, b](const Tensor& t) { return t.transpose(a, b); },
      [a, b](const Tensor& g) { return g.transpose(a, b).packed(); });
}

namespace {
/// The window of a scale or offset that belongs to a window of the codes.
Coded sliced(const Coded& c, int d, int64_t begin, int64_t end) {
  Coded y = c;
  const int from_end = d - c.codes.ndim();
  y.codes = c.codes.slice(d, begin, end);
  if (!c.per_tensor() && c.scale_axis == from_end) y.scale = c.scale.slice(0, begin, end);
  if (c.offset.defined() && c.offset.numel() > 1 && from_end == -1) y.offset = c.offset.slice(0, begin, end);
  return y;
}
}  // namespace

Variable slice(const Variable& x, int dim, int64_t begin, int64_t end) {
  const int d = normal_dim("slice", x, dim);
  LOWBIT_CHECK(0 <= begin && begin <= end && end <= x.size(d), shape, "slice",
               "range must lie inside the dimension (got [", begin, ", ", end, ") of dimension ", dim,
               " of x=", x.str(), ")");
  const Map part = [=](const Tensor& t) { return t.slice(d, begin, end); };
  if (const Coded* c = x.coded()) {
    auto node = std::make_shared<MoveNode>();
    node->op = "slice";
    node->part = part;
    return record(sliced(*c, d, begin, end), std::move(node), {x});
  }
  return move("slice", x, part);
}

Variable select(const Variable& x, int dim, int64_t index) {
  const int d = normal_dim("select", x, dim);
  LOWBIT_CHECK(0 <= index && index < x.size(d), shape, "select", "index must lie inside the dimension (got ",
               index, " of dimension ", dim, " of x=", x.str(), ")");
  return move("select", x, [=](const Tensor& t) { return t.select(d, index); });
}

Variable concat(std::span<const Variable> parts, int dim) {
  LOWBIT_CHECK(!parts.empty(), value, "concat", "at least one part is needed");
  const int d = normal_dim("concat", parts[0], dim);
  Shape shape = parts[0].shape();
  std::vector<int64_t> extents;
  int64_t total = 0;
  for (const Variable& p : parts) {
    bool fits = p.ndim() == shape.ndim() && p.dtype() == parts[0].dtype();
    for (int i = 0; fits && i < shape.ndim(); ++i) fits = i == d || p.size(i) == shape[i];
    LOWBIT_CHECK(fits, shape, "concat", "parts must agree except along dim ", dim, " (got ", parts[0].str(),
                 " and ", p.str(), ")");
    extents.push_back(p.size(d));
    total += p.size(d);
  }
  shape.set(d, total);
  Tensor y = Tensor::empty(shape, parts[0].dtype(), parts[0].device());
  int64_t at = 0;
  for (const Variable& p : parts) {
    Tensor window = y.slice(d, at, at + p.size(d));
    window.copy_from(p.data());
    at += p.size(d);
  }
  std::shared_ptr<ConcatNode> node;
  if (needs_grad(parts)) {
    node = std::make_shared<ConcatNode>();
    node->dim = d;
    node->extents = std::move(extents);
  }
  return record(std::move(y), std::move(node), parts);
}

Variable expand_batch(const Variable& x, int64_t batch) {
  LOWBIT_CHECK(x.ndim() > 0 && x.size(0) == 1, shape, "expand_batch",
               "x must be one sample, [1, ...] (got x=", x.str(), ")");
  const Shape from = x.shape();
  Shape to = from;
  to.set(0, batch);
  return move(
      "expand_batch", x, [to](const Tensor& t) { return t.expand(to); },
      [=](const Tensor& g) { return reduce_to(g, from); });
}

Variable patches(const Variable& x, int64_t patch) {
  LOWBIT_CHECK(x.ndim() == 4 && patch > 0 && x.size(2) % patch == 0 && x.size(3) % patch == 0, shape,
               "patches", "x must be [B, C, H, W] with H and W multiples of ", patch, " (got x=", x.str(),
               ")");
  const Shape from = x.shape();
  const Shape to{from[0], (from[2] / patch) * (from[3] / patch), from[1] * patch * patch};
  return move(
      "patches", x, [=](const Tensor& t) { return patch_view(t.packed(), patch).packed().reshape(to); },
      [=](const Tensor& g) {
        Tensor dx = Tensor::empty(from, g.dtype(), g.device());
        Tensor window = patch_view(dx, patch);
        window.copy_from(g.reshape(window.shape()));
        return dx;
      });
}

}  // namespace lowbit
