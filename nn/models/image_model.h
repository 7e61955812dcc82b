#pragma once
// What all image classifiers have in common: the training loop and the tools know no more of a model.

#include <string>
#include <vector>

#include "autograd/core/node.h"
#include "nn/core/module.h"
#include "nn/core/slot_info.h"

namespace lowbit {

struct ImageConfig {
  std::string name;
  int64_t image_size = 224, in_channels = 3, classes = 1000;
  double dropout = 0, drop_path = 0;  ///< drop_path: rate of the last block, linear from 0
  /// Input statistics of the published weights.
  float mean[3] = {0.485f, 0.456f, 0.406f}, std[3] = {0.229f, 0.224f, 0.225f};
};

/// One matrix product a · bᵀ of the forward pass of one image.
struct ProductCost {
  std::string name;         ///< "blocks.0.attn.qkv"
  Shape a, b;               ///< [..., M, K], [..., N, K]
  bool has_weight = true;   ///< b is a weight, the same for all images
  std::string left, right;  ///< slots of the two operands: activations, and weights or activations
  int64_t macs() const { return a.numel() * b[-2]; }
  int64_t weights() const { return has_weight ? b.numel() : 0; }
};

/// Images [B, 3, S, S] → class scores [B, classes].
class ImageModel : public Module, public DescribesSlots {
 public:
  struct Heads {
    Variable cls, dist;
  };  ///< dist is undefined for models without a distillation token
  virtual Heads heads(const Variable& images) = 0;
  /// The mean of both heads where there are two; training code that needs them apart calls heads().
  Variable operator()(const Variable& images);
  virtual const ImageConfig& config() const = 0;
  /// Every matrix product of the model, in order. Norms, softmax, GELU and additions are not counted, as in
  /// the MAC counts of the literature.
  virtual std::vector<ProductCost> product_costs() const = 0;
  /// A tensor of a checkpoint made to fit this model's input size; undefined where that cannot be done.
  virtual Tensor fitted(const std::string& /*name*/, const Tensor& /*t*/) const { return {}; }
  /// Blocks keep only their input and run again in the backward pass (same bits, less memory).
  bool recompute_blocks = false;

 protected:
  void check_images(const Variable& images) const;
  /// block(x), which `recompute_blocks` runs again in the backward pass.
  template <class Block>
  Variable run(Block block, const Variable& x) const {
    if (!recompute_blocks || !grad_enabled()) return block(x);
    const Variable in[] = {x};
    return recompute([block](std::span<const Variable> v) { return block(v[0]); }, in);
  }
};

/// The product of one layer: `rows` rows, in `groups` of its columns.
ProductCost linear_cost(const std::string& name, int64_t rows, int64_t in, int64_t out,
                        const std::string& input_slot, int64_t groups = 1);
/// The products of attention and MLP of one transformer block: `tokens` rows in groups of `group` tokens.
struct BlockShape {
  std::string attn, mlp;  ///< names of the modules
  int64_t tokens, group, width, hidden, heads;
  bool split_qkv, qk_reparam;
  const char* const* mlp_names;
};
void add_block_costs(std::vector<ProductCost>& all, const BlockShape& b);

}  // namespace lowbit
