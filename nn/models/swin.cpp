#include "nn/models/swin.h"

#include <numeric>

#include "autograd/ops/narrow.h"
#include "autograd/ops/reduce.h"
#include "autograd/ops/residual.h"
#include "autograd/ops/shape.h"

namespace lowbit {

int64_t SwinConfig::side(int64_t stage) const {
  int64_t s = image_size / patch;
  for (; stage > 0; --stage) s = (s + 1) / 2;
  return s;
}

std::string SwinConfig::block(int64_t stage, int64_t i) const {
  if (layout == SwinLayout::published) return str_cat("layers.", stage, ".blocks.", i);
  return str_cat("features.", 2 * stage + 1, ".", i);
}

std::string SwinConfig::downsample(int64_t stage) const {
  if (layout == SwinLayout::published) return str_cat("layers.", stage, ".downsample");
  return str_cat("features.", 2 * stage + 2);
}

const char* const* SwinConfig::mlp_names() const {
  static constexpr const char *usual[] = {"fc1", "fc2"}, *torchvision[] = {"0", "3"};
  return layout == SwinLayout::torchvision ? torchvision : usual;
}

SwinEmbed::SwinEmbed(const SwinConfig& c, Generator& g)
    : image_(slot("image")),
      proj_(child(c.layout == SwinLayout::published ? "proj" : "0",
                  std::make_unique<PatchConv>(c.in_channels, c.width, c.patch, g))),
      norm_(child(c.layout == SwinLayout::published ? "norm" : "2",
                  std::make_unique<LayerNorm>(c.width, c.norm_eps))),
      side_(c.side(0)) {}

Variable SwinEmbed::operator()(const Variable& x) {
  const Variable y = norm_(proj_(image_(x)));  // [B, side², C]
  return reshape(y, {y.size(0), side_, side_, -1});
}

namespace {

WindowAttention::Options attention_options(const SwinConfig& c, int64_t stage, int64_t index) {
  WindowAttention::Options o;
  o.attention.width = c.width_of(stage), o.attention.heads = c.heads[size_t(stage)];
  o.attention.split_qkv = c.split_qkv, o.attention.qk_reparam = c.qk_reparam,
  o.attention.proj_dropout = c.dropout;
  o.height = o.width = c.side(stage), o.window = c.window_of(stage);
  o.shift = index % 2 ? c.window / 2 : 0;
  o.flat_index = c.layout != SwinLayout::published;
  return o;
}

Mlp::Options mlp_options(const SwinConfig& c, int64_t stage) {
  Mlp::Options o;
  o.width = c.width_of(stage), o.hidden = int64_t(double(o.width) * c.mlp_ratio), o.dropout = c.dropout;
  std::copy_n(c.mlp_names(), 2, o.names);
  return o;
}

}  // namespace

SwinBlock::SwinBlock(const SwinConfig& c, int64_t stage, int64_t index, double drop_path, Generator& g)
    : norm1_(child("norm1", std::make_unique<LayerNorm>(c.width_of(stage), c.norm_eps))),
      attn_(child("attn", std::make_unique<WindowAttention>(attention_options(c, stage, index), g))),
      attn_sum_(slot("attn_sum")),
      norm2_(child("norm2", std::make_unique<LayerNorm>(c.width_of(stage), c.norm_eps))),
      mlp_(child("mlp", std::make_unique<Mlp>(mlp_options(c, stage), g))),
      mlp_sum_(slot("mlp_sum")),
      drop_path_(drop_path) {
  if (c.layout == SwinLayout::published && attn_.mask().defined()) optional_buffer("attn_mask", attn_.mask());
}

Variable SwinBlock::operator()(const Variable& input) {
  const double rate = training() ? drop_path_ : 0;
  const Variable x = attn_sum_(residual(input, attn_(norm1_(input)), rate));
  return mlp_sum_(residual(x, mlp_(norm2_(x)), rate));
}

PatchMerging::PatchMerging(int64_t width, double eps, bool bias, Generator& g)
    : norm_(child("norm", std::make_unique<LayerNorm>(4 * width, eps))),
      merged_(slot("merged")),
      reduction_(child("reduction", std::make_unique<Linear>(4 * width, 2 * width, bias, g))) {}

Variable PatchMerging::operator()(const Variable& x) {
  const WindowGrid g{.height = x.size(1), .width = x.size(2), .size = 2};
  const int64_t b = x.size(0), c = x.size(3);
  const Variable neighbours = reshape(window_partition(x, g), {-1, 2, 2, c});  // row, column
  return reduction_.narrowed(
      merged_(norm_(reshape(transpose(neighbours, 1, 2), {b, g.rows(), g.columns(), 4 * c}))));
}

SwinTransformer::SwinTransformer(const SwinConfig& c, uint64_t seed) : config_(c) {
  LOWBIT_CHECK(c.patch > 0 && c.window > 0 && c.image_size % c.patch == 0, usage, "model",
               "the image size must be a multiple of the patch (got ", c.image_size, " and ", c.patch, ")");
  LOWBIT_CHECK(c.heads.size() == c.depths.size() && !c.depths.empty(), usage, "model",
               "every stage needs a depth and a number of heads");
  Generator g(seed);
  embed_ = &child(c.embed(), std::make_unique<SwinEmbed>(c, g));
  const int64_t total = std::accumulate(c.depths.begin(), c.depths.end(), int64_t(0));
  int64_t index = 0;
  for (int64_t s = 0; s < c.stages(); ++s) {
    Stage& stage = stages_.emplace_back();
    for (int64_t i = 0; i < c.depths[size_t(s)]; ++i, ++index) {
      const double rate = total > 1 ? c.drop_path * double(index) / double(total - 1) : 0;
      stage.blocks.push_back(&child(c.block(s, i), std::make_unique<SwinBlock>(c, s, i, rate, g)));
    }
    if (s + 1 < c.stages())
      stage.downsample =
          &child(c.downsample(s),
                 std::make_unique<PatchMerging>(c.width_of(s), c.norm_eps, c.layout == SwinLayout::ofq, g));
  }
  norm_ = &child("norm", std::make_unique<LayerNorm>(c.width_of(c.stages() - 1), c.norm_eps));
  head_in_ = &slot("head_in");
  head_ = &child("head", std::make_unique<Linear>(c.width_of(c.stages() - 1), c.classes, true, g));
}

ImageModel::Heads SwinTransformer::heads(const Variable& images) {
  check_images(images);
  Variable x = narrowed((*embed_)(images));  // [B, side, side, C]
  for (const Stage& stage : stages_) {
    for (SwinBlock* block : stage.blocks) x = run([block](const Variable& v) { return (*block)(v); }, x);
    if (stage.downsample) x = narrowed((*stage.downsample)(x));
  }
  return {(*head_)((*head_in_)(mean((*norm_)(x), {1, 2}))), {}};
}

std::map<std::string, SlotInfo> SwinTransformer::slot_info() const {
  const SwinConfig& c = config_;
  std::map<std::string, SlotInfo> all;
  all[c.embed() + ".image"] = {{1, c.in_channels, c.image_size, c.image_size}};
  for (int64_t s = 0; s < c.stages(); ++s) {
    const int64_t side = c.side(s), w = c.width_of(s), heads = c.heads[size_t(s)], n = c.window_of(s);
    const WindowGrid g{.height = side, .width = side, .size = n};
    for (int64_t i = 0; i < c.depths[size_t(s)]; ++i) {
      const std::string block = c.block(s, i);
      all[block + ".attn.in"] = {{g.windows(), n * n, w}};
      const SlotInfo by_heads{{g.windows(), n * n, w}, heads};
      all[block + ".attn.v"] = all[block + ".attn.context"] = by_heads;
      if (c.qk_reparam) {
        all[block + ".attn.qkx"] = {{g.windows(), heads, n * n, w}, heads};
        all[block + ".attn.qk.weight"] = {{heads * w, w}};
      } else {
        all[block + ".attn.q"] = all[block + ".attn.k"] = by_heads;
      }
      all[block + ".attn.probs"] = {{g.windows(), heads, n * n, n * n}};
      all[block + ".mlp.in"] = {{1, side, side, w}};
      all[block + ".mlp.hidden"] = {{1, side, side, mlp_options(c, s).hidden}};
    }
    if (s + 1 < c.stages()) all[c.downsample(s) + ".merged"] = {{1, c.side(s + 1), c.side(s + 1), 4 * w}};
  }
  all["head_in"] = {{1, c.width_of(c.stages() - 1)}};
  return all;
}

std::vector<ProductCost> SwinTransformer::product_costs() const {
  const SwinConfig& c = config_;
  std::vector<ProductCost> all;
  const std::string proj = c.embed() + (c.layout == SwinLayout::published ? ".proj" : ".0");
  all.push_back(linear_cost(proj, c.side(0) * c.side(0), c.in_channels * c.patch * c.patch, c.width,
                            c.embed() + ".image"));
  for (int64_t s = 0; s < c.stages(); ++s) {
    const WindowGrid g{.height = c.side(s), .width = c.side(s), .size = c.window_of(s)};
    for (int64_t i = 0; i < c.depths[size_t(s)]; ++i)
      add_block_costs(
          all, {c.block(s, i) + ".attn", c.block(s, i) + ".mlp", g.padded(), g.size * g.size, c.width_of(s),
                mlp_options(c, s).hidden, c.heads[size_t(s)], c.split_qkv, c.qk_reparam, c.mlp_names()});
    if (s + 1 < c.stages())
      all.push_back(linear_cost(c.downsample(s) + ".reduction", c.side(s + 1) * c.side(s + 1),
                                4 * c.width_of(s), 2 * c.width_of(s), c.downsample(s) + ".merged"));
  }
  all.push_back(linear_cost("head", 1, c.width_of(c.stages() - 1), c.classes, "head_in"));
  return all;
}

std::vector<SwinConfig> swin_configs() {
  std::vector<SwinConfig> all;
  const struct {
    const char* size;
    int64_t width, depth, heads;
  } sizes[] = {{"tiny", 96, 6, 3}, {"small", 96, 18, 3}, {"base", 128, 18, 4}};
  for (const auto& s : sizes) {
    SwinConfig c;
    c.name = str_cat("swin_", s.size, "_patch4_window7_224");
    c.width = s.width, c.depths[2] = s.depth;
    for (size_t i = 0; i < 4; ++i) c.heads[i] = s.heads << i;
    all.push_back(c);
  }
  return all;
}

}  // namespace lowbit
