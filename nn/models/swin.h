#pragma once
// Swin transformers (Liu et al. 2021): attention in shifted windows, four stages of halving resolution.

#include <algorithm>
#include <memory>

#include "nn/layers/layer_norm.h"
#include "nn/layers/mlp.h"
#include "nn/layers/patch_embed.h"
#include "nn/layers/window_attention.h"
#include "nn/models/image_model.h"

namespace lowbit {

/// Whose names the parameters have.
enum class SwinLayout : uint8_t {
  published,    ///< layers.S.blocks.J, layers.S.downsample, patch_embed: the authors', timm's and VVTQ's
  torchvision,  ///< features.N[.J] with mlp.0 and mlp.3
  ofq,          ///< torchvision with mlp.fc1, mlp.fc2 and reduction.bias: OFQ's quantized checkpoints
};

struct SwinConfig : ImageConfig {
  int64_t patch = 4, width = 96, window = 7;
  std::vector<int64_t> depths = {2, 2, 6, 2}, heads = {3, 6, 12, 24};
  double mlp_ratio = 4, norm_eps = 1e-5;
  SwinLayout layout = SwinLayout::published;
  bool split_qkv = false;   ///< VVTQ checkpoints
  bool qk_reparam = false;  ///< OFQ's query-key reparameterization

  int64_t stages() const { return int64_t(depths.size()); }
  int64_t side(int64_t stage) const;  ///< extent of the map
  int64_t width_of(int64_t stage) const { return width << stage; }
  /// The authors' code shrinks a window that is larger than the map, torchvision pads the map.
  int64_t window_of(int64_t stage) const {
    return layout == SwinLayout::published ? std::min(window, side(stage)) : window;
  }
  std::string block(int64_t stage, int64_t i) const;  ///< names of the modules
  std::string downsample(int64_t stage) const;
  std::string embed() const { return layout == SwinLayout::published ? "patch_embed" : "features.0"; }
  const char* const* mlp_names() const;
};

/// norm(proj( image(x) )).   x [B, 3, S, S] → [B, S/P, S/P, C].   Slot: image.
class SwinEmbed : public Module {
 public:
  SwinEmbed(const SwinConfig& c, Generator& init);
  Variable operator()(const Variable& x);

 private:
  Slot& image_;
  PatchConv& proj_;
  LayerNorm& norm_;
  int64_t side_;
};

/// x = x + drop_path(attn(norm1 x)); x = x + drop_path(mlp(norm2 x)) on a map [B, H, W, C].   Slots:
/// attn_sum, mlp_sum.
class SwinBlock : public Module {
 public:
  SwinBlock(const SwinConfig& c, int64_t stage, int64_t index, double drop_path, Generator& init);
  Variable operator()(const Variable& x);

 private:
  LayerNorm& norm1_;
  WindowAttention& attn_;
  Slot& attn_sum_;
  LayerNorm& norm2_;
  Mlp& mlp_;
  Slot& mlp_sum_;
  double drop_path_;
};

/// reduction( merged(norm(2 × 2 neighbours side by side)) ).   x [B, H, W, C] → [B, ⌈H/2⌉, ⌈W/2⌉, 2C],
/// neighbours in the order (0,0), (1,0), (0,1), (1,1) of (row, column).   Slot: merged.
class PatchMerging : public Module {
 public:
  PatchMerging(int64_t width, double eps, bool bias, Generator& init);
  Variable operator()(const Variable& x);

 private:
  LayerNorm& norm_;
  Slot& merged_;
  Linear& reduction_;
};

/// Slots beside those of the parts: head_in.
class SwinTransformer : public ImageModel {
 public:
  SwinTransformer(const SwinConfig& c, uint64_t seed);
  Heads heads(const Variable& images) override;
  const SwinConfig& config() const override { return config_; }
  std::map<std::string, SlotInfo> slot_info() const override;
  std::vector<ProductCost> product_costs() const override;

 private:
  SwinConfig config_;
  SwinEmbed* embed_;
  struct Stage {
    std::vector<SwinBlock*> blocks;
    PatchMerging* downsample = nullptr;
  };
  std::vector<Stage> stages_;
  LayerNorm* norm_;
  Slot* head_in_;
  Linear* head_;
};

/// swin_{tiny,small,base}_patch4_window7_224.
std::vector<SwinConfig> swin_configs();

}  // namespace lowbit
