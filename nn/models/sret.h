#pragma once
// SReT (Shen et al. 2022): a recursive transformer. Each block runs twice, with attention inside groups of
// tokens; three stages behind a convolutional stem.

#include <array>

#include "nn/layers/attention.h"
#include "nn/layers/conv2d.h"
#include "nn/layers/layer_norm.h"
#include "nn/layers/mlp.h"
#include "nn/models/image_model.h"

namespace lowbit {

struct SretConfig : ImageConfig {
  SretConfig() { name = "sret_t"; }
  std::vector<int64_t> base = {32, 32, 32}, heads = {2, 4, 8};    ///< the width is their product
  std::vector<int64_t> blocks = {2, 5, 3};                        ///< of a stage, each run twice
  std::vector<int64_t> groups1 = {8, 4, 1}, groups2 = {2, 1, 1};  ///< of tokens, first and second run
  double mlp_ratio = 3.6, nonproj_ratio = 1, norm_eps = 1e-6;
  bool split_qkv = true;
  bool clamp_gelu = false;

  int64_t stages() const { return int64_t(blocks.size()); }
  int64_t side(int64_t stage) const;  ///< extent of the map
  int64_t width(int64_t stage) const { return base[size_t(stage)] * heads[size_t(stage)]; }
  std::string block(int64_t stage, int64_t position) const {
    return str_cat("transformers.", stage, ".blocks.", position);
  }
};

/// x · bias, a learned factor.
class Coefficient : public Module {
 public:
  Coefficient() : bias_(param("bias", Tensor::full({1}, 1), false)) {}
  Variable operator()(const Variable& x);

 private:
  Variable& bias_;  // [1]
};

/// Three times relu(bn(conv( in(x) ))) with 3 × 3 kernels of stride 2.   x [B, 3, S, S] → [B, S/8, S/8, C].
/// Slots: in1, in2, in3.
class SretStem : public Module {
 public:
  SretStem(int64_t in_channels, int64_t width, Generator& init);
  Variable operator()(const Variable& x);

 private:
  struct Layer {
    Slot* in;
    Conv2d* conv;
    BatchNorm* norm;
  };
  std::array<Layer, 3> layers_;
};

/// x = c1·x + c2·drop_path(attn(norm1 x)); x = c3·x + c4·drop_path(mlp(norm2 x)).   x [B, N, C].   Slot:
/// mlp_sum.
class SretBlock : public Module {
 public:
  SretBlock(const SretConfig& c, int64_t stage, double drop_path, Generator& init);
  Variable operator()(const Variable& x, const AttentionUse& use);

 private:
  LayerNorm& norm1_;
  Attention& attn_;
  LayerNorm& norm2_;
  Mlp& mlp_;
  Coefficient &c1_, &c2_, &c3_, &c4_;
  Slot& mlp_sum_;
  double drop_path_;
};

/// c1·x + c2·mlp(norm1 x).   Slot: mlp_sum.
class NonlinearProjection : public Module {
 public:
  NonlinearProjection(const SretConfig& c, int64_t stage, Generator& init);
  Variable operator()(const Variable& x);

 private:
  LayerNorm& norm1_;
  Mlp& mlp_;
  Coefficient &c1_, &c2_;
  Slot& mlp_sum_;
};

/// conv( in(x) ), 3 × 3 with stride 2 and one group per channel.   [B, H, W, C] → [B, H/2, W/2, C'].   Slot:
/// in.
class SretPool : public Module {
 public:
  SretPool(int64_t in_channels, int64_t out_channels, Generator& init);
  Variable operator()(const Variable& x) { return conv_(in_(x)); }

 private:
  Slot& in_;
  Conv2d& conv_;
};

/// Slots beside those of the parts: head_in.
class SretTransformer : public ImageModel {
 public:
  SretTransformer(const SretConfig& c, uint64_t seed);
  Heads heads(const Variable& images) override;
  const SretConfig& config() const override { return config_; }
  std::map<std::string, SlotInfo> slot_info() const override;
  std::vector<ProductCost> product_costs() const override;
  /// The order of n tokens for the k-th second run of a forward pass whose tokens are mixed between groups.
  /// The published code draws one in every pass; by default evaluation draws the same ones each time.
  std::function<Tensor(int64_t k, int64_t n)> order;

 private:
  Tensor drawn_order(int64_t k, int64_t n) const;
  SretConfig config_;
  Variable* pos_embed_;  // [1, C, side, side]
  SretStem* stem_;
  struct Stage {
    std::vector<SretBlock*> blocks;
    std::vector<NonlinearProjection*> projections;  // two per block
    SretPool* pool = nullptr;
  };
  std::vector<Stage> stages_;
  LayerNorm* norm_;
  Slot* head_in_;
  Linear* head_;
};

/// sret_t, sret_lt, sret_s.
std::vector<SretConfig> sret_configs();

}  // namespace lowbit
