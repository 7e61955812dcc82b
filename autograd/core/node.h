#pragma once
// Node: one subclass per differentiable op; saved state is plain members, so it can be named, sized and
// freed.

#include <functional>
#include <map>
#include <span>
#include <string>

#include "autograd/core/variable.h"

namespace lowbit {

/// A tensor kept for backward, with its storage version.
class Saved {
 public:
  Saved() = default;
  explicit Saved(const Tensor& t) { set(t); }
  void set(const Tensor& t) { t_ = t, version_ = t.version(), released_ = false; }
  /// Throws if the tensor was modified in place after it was saved, or already released.
  const Tensor& get(const char* op, int index) const;
  bool defined() const { return t_.defined(); }
  void release() { t_ = Tensor{}, released_ = true; }
  const Tensor& peek() const { return t_; }  ///< for size reports

 private:
  Tensor t_;
  uint32_t version_ = 0;
  bool released_ = false;
};

/// Codes kept for backward. Codes are never written in place, so no version is needed.
class SavedCodes {
 public:
  void set(const Coded& c) { c_ = c; }
  const Coded& get(const char* op, int index) const;
  bool defined() const { return c_.defined(); }
  void release() { c_ = Coded{}; }

 private:
  Coded c_;
};

/// The value of a variable kept for backward: as a reference to its producer where that can make it again
/// from what it keeps itself, so that a layer norm's output need not be kept beside its input; a narrow value
/// stays narrow.
class SavedValue {
 public:
  void set(const Variable& x);
  Tensor get(const char* op, int index) const;  ///< throws like Saved; the same bits in either case
  /// The same without widening: bf16 where the value was narrow.
  Tensor stored(const char* op, int index) const;
  void release() { kept_.release(), producer_.reset(); }
  const Tensor& peek() const { return kept_.peek(); }

 private:
  Saved kept_;
  std::shared_ptr<Node> producer_;
};

/// Where backward writes; one per node call.
class GradSink {
 public:
  explicit GradSink(std::span<const std::shared_ptr<GradMeta>> inputs) : inputs_(inputs) {}
  bool wants(int input) const;  ///< false: skip the work
  /// Uninitialised packed buffer shaped like that input; a leaf's arena window when it is free.
  Tensor alloc(int input) const;
  void add(int input, Tensor g);  ///< accumulate (moves if first)
  /// The gradient that has come so far, for a kernel that adds its own to it; the sum then is what to add().
  /// Undefined where nothing has come, and for a leaf.
  Tensor take(int input);
  /// Accumulates into a part of that input's gradient, a view of it; the rest receives nothing.
  void add_part(int input, const std::function<Tensor(const Tensor&)>& part, const Tensor& g);
  /// Nothing to add, but that input's producer has to run: the nodes keep for it what they were given. It
  /// gets an undefined gradient.
  void reach(int input);

 private:
  /// The gradient of an input that has one, to be added to: copied where it is shared with another input,
  /// as addition hands gy to both.
  static Tensor& own(GradMeta& m);
  std::span<const std::shared_ptr<GradMeta>> inputs_;
};

class Node {
 public:
  virtual ~Node() = default;
  virtual const char* name() const = 0;
  /// gy has the shape of the output and is packed.
  virtual void backward(const Tensor& gy, GradSink& gx) = 0;
  virtual void release() = 0;  ///< drops saved members
  /// Whether replay() makes the output again, packed and bit for bit, from what is saved; only where that is
  /// cheap.
  virtual bool replays() const { return false; }
  virtual Tensor replay() const { return {}; }
  /// Whether every row of the output adds up to one, up to rounding.
  virtual bool rows_sum_to_one() const { return false; }
  virtual std::vector<Tensor> saved() const = 0;  ///< everything kept for backward, for the memory report
  uint64_t seq = 0;                               ///< creation order, a topological order
  std::vector<std::shared_ptr<GradMeta>> inputs;
};

/// Puts an op's result on the tape. `node` may be null when nothing can be differentiated; it is dropped when
/// no input requires a gradient or recording is off.
Variable record(Tensor y, std::shared_ptr<Node> node, std::initializer_list<Variable> inputs);
Variable record(Coded y, std::shared_ptr<Node> node, std::initializer_list<Variable> inputs);
Variable record(Narrow y, std::shared_ptr<Node> node, std::initializer_list<Variable> inputs);
Variable record(Tensor y, std::shared_ptr<Node> node, std::span<const Variable> inputs);
Variable record(Coded y, std::shared_ptr<Node> node, std::span<const Variable> inputs);
/// The same with a value that nobody has asked for yet.
Variable record(std::shared_ptr<const Deferred> y, const Shape& shape, Device device,
                std::shared_ptr<Node> node, std::initializer_list<Variable> inputs);
/// False where every value is looked at as soon as it is recorded.
bool may_defer();

/// Whether the value's producer can make it again (Node::replay).
bool can_replay(const Variable& x);

/// Whether the rows of the value are known to add up to one. Where nothing is recorded nothing is known.
bool rows_sum_to_one(const Variable& x);

/// True when a node for these inputs would be kept; ops skip building one otherwise.
bool needs_grad(std::initializer_list<Variable> inputs);
bool needs_grad(std::span<const Variable> inputs);

/// Forward: value; backward: identity to x.
Variable straight_through(const Variable& x, Tensor value);

/// Runs f without keeping its tape; backward runs it again (same random draws) and differentiates that. The
/// captured parameters receive their gradients as usual. f must not change state that its result depends on.
Variable recompute(const std::function<Variable(std::span<const Variable>)>& f,
                   std::span<const Variable> inputs);

/// Bytes kept for backward by the tape behind `root`, per op name; a storage shared by several nodes counts
/// once, for the node that was created first.
std::map<std::string, size_t> saved_memory(const Variable& root);

struct GradcheckReport {
  double worst_abs = 0, worst_rel = 0;
  int input = -1;
  int64_t element = -1;
  bool ok = true;
  std::string str() const;
};
/// Central differences in float64: the full Jacobian up to 200 elements, else vᵀJu with two fixed random
/// vectors. `grad_of` names the inputs to check (empty: all).
GradcheckReport gradcheck(const std::function<Variable(std::span<const Variable>)>& f,
                          std::span<const Tensor> f64_inputs, double eps = 1e-6, double atol = 1e-7,
                          double rtol = 1e-5, std::span<const int> grad_of = {});
/// The same with a separate function to difference: for straight-through ops the frozen-rounding surrogate.
GradcheckReport gradcheck_against(const std::function<Variable(std::span<const Variable>)>& f,
                                  const std::function<Variable(std::span<const Variable>)>& surrogate,
                                  std::span<const Tensor> f64_inputs, double eps = 1e-6, double atol = 1e-7,
                                  double rtol = 1e-5, std::span<const int> grad_of = {});

}  // namespace lowbit
