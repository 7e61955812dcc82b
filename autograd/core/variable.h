#pragma once
// Variable: a tensor (or the integer codes of one, or its values in bf16) plus its place on the tape.

#include <memory>
#include <vector>

#include "tensor/core/coded.h"
#include "tensor/core/tensor.h"

namespace lowbit {

class Node;

/// What backward needs to know of a value: shape, where its gradient goes, who produced it. Kept apart from
/// the data, so that a node that does not need an input's value does not keep its memory alive.
struct GradMeta {
  Shape shape;
  DType dtype = DType::f32;
  Device device;
  bool requires_grad = false;
  Tensor grad;  ///< valid when has_grad
  bool has_grad = false;
  bool fixed_buffer = false;       ///< grad is a window into an arena that outlives the step
  std::shared_ptr<Node> producer;  ///< null for leaves
  ~GradMeta();
};

/// A value that is made when somebody asks for it. An op that has one kernel for a whole chain looks at what
/// was put off, by its type, and never asks (autograd/ops/deferred.h).
class Deferred {
 public:
  virtual ~Deferred() = default;
  virtual bool coded() const { return false; }
  virtual Tensor values() const { return {}; }  ///< packed; where not coded()
  virtual Coded codes() const { return {}; }    ///< where coded()
};

/// An f32 value that was rounded to bf16 and is stored so: activations where Context::gemm is bf16
/// (docs/numerics.md, rule 7). To the tape it is f32, and so are its gradients.
struct Narrow {
  Tensor values;  ///< bf16
};

class Variable {
 public:
  Variable() = default;
  explicit Variable(Tensor data, bool requires_grad = false);
  /// A leaf holding codes; for inference and tests.
  explicit Variable(Coded codes);
  explicit Variable(Narrow data, bool requires_grad = false);
  /// An f32 value of this shape that nobody has asked for yet.
  Variable(std::shared_ptr<const Deferred> value, const Shape& shape, Device device);

  bool defined() const { return impl_ != nullptr; }
  /// The value as floats. A coded variable is dequantized, a narrow one widened on first use and the result
  /// kept.
  const Tensor& data() const;
  /// The integer codes, or null for an ordinary variable.
  const Coded* coded() const;
  /// The value as bf16 where it is stored so, or null.
  const Tensor* narrow() const;
  /// The value without widening: narrow() where there is one, else data().
  const Tensor& stored() const { return narrow() ? *narrow() : data(); }
  /// What makes the value, or null when it is there.
  const Deferred* deferred() const;
  /// Replaces the value of a leaf (same shape); for loading and initialisation.
  void set_data(Tensor t);
  Tensor& mutable_data();  ///< in-place access to a leaf's value

  const Shape& shape() const;
  int64_t size(int dim) const { return shape()[dim]; }
  int64_t numel() const { return shape().numel(); }
  int ndim() const { return shape().ndim(); }
  DType dtype() const;
  Device device() const;
  std::string str() const;

  bool requires_grad() const;
  void set_requires_grad(bool on);  ///< leaves only
  /// Undefined tensor until backward reached it.
  Tensor grad() const;
  void zero_grad() const;               ///< forgets the gradient; an arena window keeps its memory
  void set_grad_buffer(Tensor window);  ///< leaf gradients are written here
  Variable detach() const;
  /// gy defaults to 1 for scalars only. Without `retain` the tape is released on the way.
  void backward(const Tensor& gy = {}, bool retain = false) const;

  struct Impl;
  Impl* impl() const { return impl_.get(); }
  const std::shared_ptr<GradMeta>& meta() const;

 private:
  std::shared_ptr<Impl> impl_;
};

struct Variable::Impl {
  Tensor data;
  Coded coded;
  Tensor narrow;
  std::shared_ptr<const Deferred> deferred;  ///< until data or coded is there
  void make();
  std::shared_ptr<GradMeta> meta;
};

/// RAII: no nodes are recorded.
struct NoGrad {
  NoGrad();
  ~NoGrad();
  NoGrad(const NoGrad&) = delete;

 private:
  bool previous_;
};
bool grad_enabled();

}  // namespace lowbit
