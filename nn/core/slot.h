#pragma once
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

/// Named, optional tap of a layer; empty = identity at the price of one pointer test. `state_name` is where
/// the state of a transform that is a Module appears below the slot's owner ("" = directly beside the owner's
/// parameters).
class Slot {
 public:
  Variable operator()(const Variable& x) const { return t_ ? t_->apply(x) : x; }
  void set(std::shared_ptr<Transform> t, std::string state_name) {
    t_ = std::move(t);
    state_name_ = std::move(state_name);
  }
  void clear() { t_.reset(); }
  Transform* get() const { return t_.get(); }
  const std::string& state_name() const { return state_name_; }

 private:
  std::shared_ptr<Transform> t_;
  std::string state_name_;
};

}  // namespace lowbit
