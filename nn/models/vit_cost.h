#pragma once
#include <string>
#include <vector>

#include "nn/models/vit.h"

namespace lowbit {

/// One matrix product of a forward pass.
struct ProductCost {
  std::string name;         ///< "blocks.0.attn.qkv"
  int64_t macs = 0;         ///< multiply-adds for one image
  int64_t weights = 0;      ///< parameters of the weight operand; 0 for products of activations
  std::string left, right;  ///< slots of the two operands: activations, and weights or activations
};

/// Every matrix product of the model, in order. Norms, softmax, GELU and additions are not counted, as in the
/// MAC counts of the literature.
std::vector<ProductCost> product_costs(const VitConfig& c);

}  // namespace lowbit
