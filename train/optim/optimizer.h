#pragma once
// AdamW, Adam and SGD as one fused pass over the arenas.

#include "train/optim/arena.h"
#include "train/optim/update.h"

namespace lowbit {

struct OptimizerOptions {
  std::string kind = "adamw";  ///< adamw, adam (L2 in the gradient), sgd (Nesterov), momentum
  double weight_decay = 0.05;  ///< of the slices that take part in it
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  double momentum = 0.9;
};

/// Elementwise, hence the same bits for any number of threads. A parameter without a gradient keeps value,
/// moments and step count.
class Optimizer {
 public:
  /// Throws Error(usage) for an unknown kind. `arena` must outlive the optimizer.
  Optimizer(ParameterArena& arena, OptimizerOptions o);
  const OptimizerOptions& options() const { return o_; }

  /// Counts a step for every parameter that has a gradient and returns the rows of UpdateHyper for step(), on
  /// the host.
  std::vector<float> hyper(double lr);
  /// hyper [slices, kHyperColumns] on the device of the arena.
  void step(const Tensor& hyper);
  void step(double lr);
  void zero_grad() { arena_->zero_grad(); }

  /// "exp_avg/<name>", "exp_avg_sq/<name>" (or "momentum/<name>") and "steps" i64 [slices]. The moments share
  /// memory.
  TensorMap state() const;
  void load(const TensorMap& s);
  size_t bytes() const;  ///< of the moments

 private:
  bool adam() const { return second_ != nullptr; }
  ParameterArena* arena_;
  OptimizerOptions o_;
  Arena first_;
  std::unique_ptr<Arena> second_;
  std::vector<int64_t> steps_;  ///< per slice
  Tensor chunks_;
};

}  // namespace lowbit
