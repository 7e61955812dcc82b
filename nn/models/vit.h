#pragma once
// Vision transformers of the DeiT/ViT family (Dosovitskiy et al. 2021; Touvron et al. 2021), timm names.

#include <memory>
#include <string>
#include <vector>

#include "nn/layers/attention.h"
#include "nn/layers/layer_norm.h"
#include "nn/layers/mlp.h"
#include "nn/layers/patch_embed.h"
#include "nn/models/image_model.h"

namespace lowbit {

struct VitConfig : ImageConfig {
  VitConfig() { name = "deit_tiny_patch16_224"; }
  int64_t patch = 16, width = 192, depth = 12, heads = 3;
  double mlp_ratio = 4, norm_eps = 1e-6;
  bool distilled = false;   ///< a second token and head (Touvron et al. 2021, section 4)
  bool split_qkv = false;   ///< VVTQ checkpoint layout
  bool qk_reparam = false;  ///< OFQ's query-key reparameterization
  bool clamp_gelu = false;  ///< VVTQ float twin

  int64_t grid() const { return image_size / patch; }
  int64_t prefix_tokens() const { return distilled ? 2 : 1; }
  int64_t tokens() const { return grid() * grid() + prefix_tokens(); }
  int64_t hidden() const { return int64_t(double(width) * mlp_ratio); }
};

/// x = x + drop_path(attn(norm1 x)); x = x + drop_path(mlp(norm2 x)).   Slots: attn_sum, mlp_sum (residual
/// sums).
class VitBlock : public Module {
 public:
  VitBlock(const VitConfig& c, double drop_path, Generator& init);
  Variable operator()(const Variable& x);

 private:
  LayerNorm& norm1_;
  Attention& attn_;
  Slot& attn_sum_;
  LayerNorm& norm2_;
  Mlp& mlp_;
  Slot& mlp_sum_;
  double drop_path_;
};

/// Distilled models have a second head.   Slots: head_in, head_dist_in.
class VisionTransformer : public ImageModel {
 public:
  VisionTransformer(const VitConfig& c, uint64_t seed);
  Heads heads(const Variable& images) override;
  const VitConfig& config() const override { return config_; }
  /// Of the slots that feed a product.
  std::map<std::string, SlotInfo> slot_info() const override;
  std::vector<ProductCost> product_costs() const override;
  Tensor fitted(const std::string& name, const Tensor& t) const override;  ///< resize_pos_embed

 private:
  Variable features(const Variable& images);  // [B, tokens, C] after the last norm
  VisionTransformer(const VitConfig& c, Generator init);
  VitConfig config_;
  Variable& cls_token_;   // [1, 1, C]
  Variable* dist_token_;  // [1, 1, C]
  Variable& pos_embed_;   // [1, tokens, C]
  PatchEmbed& patch_embed_;
  std::vector<VitBlock*> blocks_;
  LayerNorm* norm_;
  Slot *head_in_, *head_dist_in_ = nullptr;
  Linear *head_, *head_dist_ = nullptr;
};

/// Known names: deit_{tiny,small,base}[_distilled]_patch16_224, vit_{tiny,small,base}_patch16_224 and
/// tinyvit_patch8_64 (the 4-block model of the sample data). Throws Error(usage) with the nearest names.
VitConfig vit_config(const std::string& name);
std::vector<std::string> vit_names();

/// Position embedding for another grid: prefix tokens stay, the rest is resized bicubically (a = −0.75, pixel
/// centres aligned at half, no antialiasing), as published fine-tuning code does.
/// Shapes  pos [1, prefix + g·g, C] → [1, prefix + grid·grid, C].   Errors  shape: not a square grid
Tensor resize_pos_embed(const Tensor& pos, int64_t prefix, int64_t grid);

}  // namespace lowbit
