#pragma once
#include <map>
#include <string>

#include "tensor/core/shape.h"

namespace lowbit {

/// What passes a slot.
struct SlotInfo {
  Shape shape;              ///< at batch size 1
  int64_t heads = 1;        ///< equal parts of the last dimension, each the columns of one head
  bool same_tokens = true;  ///< every use has as many tokens, dimension −2
};

/// A model that knows it, for quantizers whose number of scales depends on it.
class DescribesSlots {
 public:
  virtual ~DescribesSlots() = default;
  /// Of the slots of activations; those of weights have the shape of their parameter.
  virtual std::map<std::string, SlotInfo> slot_info() const = 0;
};

}  // namespace lowbit
