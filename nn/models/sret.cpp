#include "nn/models/sret.h"

#include <numeric>

#include "autograd/ops/broadcast.h"
#include "autograd/ops/drop_path.h"
#include "autograd/ops/pointwise.h"
#include "autograd/ops/reduce.h"
#include "autograd/ops/shape.h"
#include "autograd/ops/token_order.h"
#include "nn/core/init.h"
#include "tensor/core/draws.h"

namespace lowbit {
namespace {

constexpr ConvOptions kHalving{.stride = 2, .padding = 1, .groups = 1};

int64_t halved(int64_t side, int64_t times) {
  for (; times > 0; --times) side = (side + 1) / 2;
  return side;
}

Mlp::Options mlp_options(const SretConfig& c, int64_t stage, double ratio) {
  Mlp::Options o;
  o.width = c.width(stage), o.hidden = int64_t(double(o.width) * ratio);
  o.dropout = c.dropout, o.clamp_gelu = c.clamp_gelu;
  return o;
}

}  // namespace

int64_t SretConfig::side(int64_t stage) const { return halved(image_size, 3 + stage); }

Variable Coefficient::operator()(const Variable& x) { return mul(x, bias_); }

SretStem::SretStem(int64_t in_channels, int64_t width, Generator& g) {
  const int64_t channels[] = {in_channels, width / 2, width, width};
  for (size_t i = 0; i < layers_.size(); ++i) {
    const std::string n = std::to_string(i + 1);
    layers_[i].in = &slot("in" + n);
    layers_[i].conv =
        &child("conv" + n, std::make_unique<Conv2d>(channels[i], channels[i + 1], 3, kHalving, g));
    layers_[i].norm = &child("bn" + n, std::make_unique<BatchNorm>(channels[i + 1]));
  }
}

Variable SretStem::operator()(const Variable& images) {
  Variable x = permute(images, {0, 2, 3, 1});  // [B, S, S, 3]
  for (const Layer& l : layers_) x = relu((*l.norm)((*l.conv)((*l.in)(x))));
  return x;
}

SretBlock::SretBlock(const SretConfig& c, int64_t stage, double drop_path, Generator& g)
    : norm1_(child("norm1", std::make_unique<LayerNorm>(c.width(stage), c.norm_eps))),
      attn_(child("attn", std::make_unique<Attention>(Attention::Options{.width = c.width(stage),
                                                                         .heads = c.heads[size_t(stage)],
                                                                         .split_qkv = c.split_qkv,
                                                                         .proj_dropout = c.dropout},
                                                      g))),
      norm2_(child("norm2", std::make_unique<LayerNorm>(c.width(stage), c.norm_eps))),
      mlp_(child("mlp", std::make_unique<Mlp>(mlp_options(c, stage, c.mlp_ratio), g))),
      c1_(child("coefficient1", std::make_unique<Coefficient>())),
      c2_(child("coefficient2", std::make_unique<Coefficient>())),
      c3_(child("coefficient3", std::make_unique<Coefficient>())),
      c4_(child("coefficient4", std::make_unique<Coefficient>())),
      mlp_sum_(slot("mlp_sum")),
      drop_path_(drop_path) {}

Variable SretBlock::operator()(const Variable& input, const AttentionUse& use) {
  const double rate = training() ? drop_path_ : 0;
  const Variable x = add(c1_(input), c2_(drop_path(attn_(norm1_(input), use), rate)));
  return mlp_sum_(add(c3_(x), c4_(drop_path(mlp_(norm2_(x)), rate))));
}

NonlinearProjection::NonlinearProjection(const SretConfig& c, int64_t stage, Generator& g)
    : norm1_(child("norm1", std::make_unique<LayerNorm>(c.width(stage), c.norm_eps))),
      mlp_(child("mlp", std::make_unique<Mlp>(mlp_options(c, stage, c.nonproj_ratio), g))),
      c1_(child("coefficient1", std::make_unique<Coefficient>())),
      c2_(child("coefficient2", std::make_unique<Coefficient>())),
      mlp_sum_(slot("mlp_sum")) {}

Variable NonlinearProjection::operator()(const Variable& x) {
  return mlp_sum_(add(c1_(x), c2_(mlp_(norm1_(x)))));
}

SretPool::SretPool(int64_t in_channels, int64_t out_channels, Generator& g)
    : in_(slot("in")),
      conv_(child("conv", std::make_unique<Conv2d>(in_channels, out_channels, 3,
                                                   ConvOptions{2, 1, in_channels}, g))) {}

SretTransformer::SretTransformer(const SretConfig& c, uint64_t seed)
    : order([this](int64_t k, int64_t n) { return drawn_order(k, n); }), config_(c) {
  LOWBIT_CHECK(c.image_size >= 8 && c.base.size() == c.blocks.size() && c.heads.size() == c.blocks.size() &&
                   c.groups1.size() == c.blocks.size() && c.groups2.size() == c.blocks.size(),
               usage, "model", "every stage needs blocks, heads, a width and groups");
  Generator g(seed);
  pos_embed_ = &param("pos_embed", init::trunc_normal({1, c.width(0), c.side(0), c.side(0)}, 0.02, g), false);
  stem_ = &child("patch_embed", std::make_unique<SretStem>(c.in_channels, c.width(0), g));
  const int64_t total = 2 * std::accumulate(c.blocks.begin(), c.blocks.end(), int64_t(0));
  int64_t before = 0;
  for (int64_t s = 0; s < c.stages(); before += 2 * c.blocks[size_t(s)], ++s) {
    const int64_t tokens = c.side(s) * c.side(s);
    LOWBIT_CHECK(tokens % c.groups1[size_t(s)] == 0 && tokens % c.groups2[size_t(s)] == 0, usage, "model",
                 "the groups must divide the tokens of a stage (got ", tokens, " tokens in stage ", s, ")");
    Stage& stage = stages_.emplace_back();
    for (int64_t r = 0; r < c.blocks[size_t(s)]; ++r) {
      const double rate = c.drop_path * double(before + r) / double(total);
      stage.blocks.push_back(&child(c.block(s, 4 * r), std::make_unique<SretBlock>(c, s, rate, g)));
      for (const int64_t position : {4 * r + 1, 4 * r + 3}) {
        stage.projections.push_back(
            &child(c.block(s, position), std::make_unique<NonlinearProjection>(c, s, g)));
        if (position == 4 * r + 1) alias(c.block(s, 4 * r + 2), *stage.blocks.back());
      }
    }
  }
  for (int64_t s = 0; s + 1 < c.stages(); ++s)
    stages_[size_t(s)].pool =
        &child(str_cat("pools.", s), std::make_unique<SretPool>(c.width(s), c.width(s + 1), g));
  norm_ = &child("norm", std::make_unique<LayerNorm>(c.width(c.stages() - 1), c.norm_eps));
  head_in_ = &slot("head_in");
  head_ = &child("head", std::make_unique<Linear>(c.width(c.stages() - 1), c.classes, true, g));
}

Tensor SretTransformer::drawn_order(int64_t k, int64_t n) const {
  RngKey key{uint64_t(k), 0, 0, nullptr};
  if (training()) key = reserve_draws(uint64_t(n));
  return lowbit::drawn_order(key, n, pos_embed_->device());
}

ImageModel::Heads SretTransformer::heads(const Variable& images) {
  check_images(images);
  Variable x = (*stem_)(images);  // [B, side, side, C]
  x = add(x, permute(*pos_embed_, {0, 2, 3, 1}));
  int64_t mixed = 0;
  for (size_t s = 0; s < stages_.size(); ++s) {
    const Stage& stage = stages_[s];
    const int64_t batch = x.size(0), side = x.size(1);
    x = reshape(x, {batch, side * side, -1});
    for (size_t i = 0; i < stage.projections.size(); ++i) {  // two per block: the block's second run is odd
      AttentionUse use{.groups = i % 2 ? config_.groups2[s] : config_.groups1[s]};
      if (i % 2 && use.groups > 1) use.order = order(mixed++, side * side);
      SretBlock* block = stage.blocks[i / 2];
      x = run([block, use](const Variable& v) { return (*block)(v, use); }, x);
      x = (*stage.projections[i])(x);
    }
    if (stage.pool) x = (*stage.pool)(reshape(x, {batch, side, side, -1}));
  }
  return {(*head_)((*head_in_)((*norm_)(mean(x, {1})))), {}};
}

std::map<std::string, SlotInfo> SretTransformer::slot_info() const {
  const SretConfig& c = config_;
  std::map<std::string, SlotInfo> all;
  const int64_t w0 = c.width(0), channels[] = {c.in_channels, w0 / 2, w0};
  for (int64_t i = 0; i < 3; ++i) {
    const int64_t side = halved(c.image_size, i);
    all[str_cat("patch_embed.in", i + 1)] = {{1, side, side, channels[i]}};
  }
  for (int64_t s = 0; s < c.stages(); ++s) {
    const int64_t side = c.side(s), n = side * side, w = c.width(s), g = c.groups1[size_t(s)],
                  heads = c.heads[size_t(s)];
    const bool same = g == c.groups2[size_t(s)];
    for (int64_t i = 0; i < 4 * c.blocks[size_t(s)]; ++i) {
      const std::string block = c.block(s, i);
      if (i % 4 == 2) continue;
      const double ratio = i % 2 ? c.nonproj_ratio : c.mlp_ratio;
      all[block + ".mlp.in"] = {{1, n, w}};
      all[block + ".mlp.hidden"] = {{1, n, mlp_options(c, s, ratio).hidden}};
      if (i % 2) continue;
      all[block + ".attn.in"] = {{1, n, w}};
      for (const char* part : {".attn.q", ".attn.k", ".attn.v", ".attn.context"})
        all[block + part] = {{g, n / g, w}, heads, same};
      all[block + ".attn.probs"] = {{g, heads, n / g, n / g}, 1, same};
    }
    if (s + 1 < c.stages()) all[str_cat("pools.", s, ".in")] = {{1, side, side, w}};
  }
  all["head_in"] = {{1, c.width(c.stages() - 1)}};
  return all;
}

std::vector<ProductCost> SretTransformer::product_costs() const {
  static constexpr const char* kMlp[] = {"fc1", "fc2"};
  const SretConfig& c = config_;
  std::vector<ProductCost> all;
  const int64_t w0 = c.width(0), channels[] = {c.in_channels, w0 / 2, w0, w0};
  for (int64_t i = 0; i < 3; ++i) {
    const int64_t side = halved(c.image_size, i + 1);
    all.push_back(linear_cost(str_cat("patch_embed.conv", i + 1), side * side, 9 * channels[i],
                              channels[i + 1], str_cat("patch_embed.in", i + 1)));
  }
  for (int64_t s = 0; s < c.stages(); ++s) {
    const int64_t n = c.side(s) * c.side(s), w = c.width(s);
    for (int64_t i = 0; i < 4 * c.blocks[size_t(s)]; ++i) {
      const std::string block = c.block(s, i % 4 == 2 ? i - 2 : i), mlp = block + ".mlp";
      const int64_t groups = i % 4 ? c.groups2[size_t(s)] : c.groups1[size_t(s)];
      const int64_t hidden = mlp_options(c, s, i % 2 ? c.nonproj_ratio : c.mlp_ratio).hidden;
      if (i % 2 == 0) {
        add_block_costs(all, {block + ".attn", mlp, n, n / groups, w, hidden, c.heads[size_t(s)], c.split_qkv,
                              false, kMlp});
      } else {
        all.push_back(linear_cost(mlp + ".fc1", n, w, hidden, mlp + ".in"));
        all.push_back(linear_cost(mlp + ".fc2", n, hidden, w, mlp + ".hidden"));
      }
    }
    if (s + 1 < c.stages()) {
      const int64_t side = c.side(s + 1);
      all.push_back(linear_cost(str_cat("pools.", s, ".conv"), side * side, 9 * w, c.width(s + 1),
                                str_cat("pools.", s, ".in"), w));
    }
  }
  all.push_back(linear_cost("head", 1, c.width(c.stages() - 1), c.classes, "head_in"));
  return all;
}

std::vector<SretConfig> sret_configs() {
  SretConfig t, lt, s;
  lt.name = "sret_lt", lt.mlp_ratio = 4;
  s.name = "sret_s", s.base = {42, 42, 42}, s.heads = {3, 6, 12}, s.mlp_ratio = 3, s.nonproj_ratio = 2;
  return {t, lt, s};
}

}  // namespace lowbit
