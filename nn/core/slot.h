#pragma once
#include <functional>
#include <memory>
#include <string>

#include "autograd/core/variable.h"

namespace lowbit {

/// What may sit in a Slot.
class Transform {
 public:
  virtual ~Transform() = default;
  virtual Variable apply(const Variable& x) = 0;
};

/// Named, optional tap of a layer; empty = identity at the price of two pointer tests. `state_name` is where
/// the state of a transform that is a Module appears below the slot's owner ("" = directly beside the owner's
/// parameters).
class Slot {
 public:
  Variable operator()(const Variable& x) const {
    const Variable y = t_ ? t_->apply(x) : x;
    if (watcher_) watcher_(y);
    return y;
  }
  void set(std::shared_ptr<Transform> t, std::string state_name) {
    t_ = std::move(t);
    state_name_ = std::move(state_name);
  }
  void clear() { t_.reset(); }
  Transform* get() const { return t_.get(); }
  /// Called with every value that leaves the slot; {}: nobody is.
  void watch(std::function<void(const Variable&)> watcher) { watcher_ = std::move(watcher); }
  const std::string& state_name() const { return state_name_; }

 private:
  std::shared_ptr<Transform> t_;
  std::string state_name_;
  std::function<void(const Variable&)> watcher_;
};

}  // namespace lowbit
