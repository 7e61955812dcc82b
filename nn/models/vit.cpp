#include "nn/models/vit.h"

#include <algorithm>
#include <cmath>

#include "autograd/ops/broadcast.h"
#include "autograd/ops/narrow.h"
#include "autograd/ops/residual.h"
#include "autograd/ops/shape.h"
#include "nn/core/init.h"

namespace lowbit {

VitBlock::VitBlock(const VitConfig& c, double drop_path, Generator& g)
    : norm1_(child("norm1", std::make_unique<LayerNorm>(c.width, c.norm_eps))),
      attn_(child("attn", std::make_unique<Attention>(Attention::Options{.width = c.width,
                                                                         .heads = c.heads,
                                                                         .split_qkv = c.split_qkv,
                                                                         .qk_reparam = c.qk_reparam,
                                                                         .proj_dropout = c.dropout},
                                                      g))),
      attn_sum_(slot("attn_sum")),
      norm2_(child("norm2", std::make_unique<LayerNorm>(c.width, c.norm_eps))),
      mlp_(child("mlp", std::make_unique<Mlp>(Mlp::Options{.width = c.width,
                                                           .hidden = c.hidden(),
                                                           .dropout = c.dropout,
                                                           .clamp_gelu = c.clamp_gelu},
                                              g))),
      mlp_sum_(slot("mlp_sum")),
      drop_path_(drop_path) {}

Variable VitBlock::operator()(const Variable& input) {
  const double rate = training() ? drop_path_ : 0;
  const Variable x = attn_sum_(residual(input, attn_(norm1_(input)), rate));
  return mlp_sum_(residual(x, mlp_(norm2_(x)), rate));
}

VisionTransformer::VisionTransformer(const VitConfig& c, uint64_t seed)
    : VisionTransformer(c, Generator(seed)) {}

VisionTransformer::VisionTransformer(const VitConfig& c, Generator g)
    : config_(c),
      cls_token_(param("cls_token", init::trunc_normal({1, 1, c.width}, 0.02, g), false)),
      dist_token_(c.distilled ? &param("dist_token", init::trunc_normal({1, 1, c.width}, 0.02, g), false)
                              : nullptr),
      pos_embed_(param("pos_embed", init::trunc_normal({1, c.tokens(), c.width}, 0.02, g), false)),
      patch_embed_(child("patch_embed", std::make_unique<PatchEmbed>(c.in_channels, c.width, c.patch, g))) {
  LOWBIT_CHECK(c.patch > 0 && c.image_size % c.patch == 0, usage, "model",
               "the image size must be a multiple of the patch (got ", c.image_size, " and ", c.patch, ")");
  for (int64_t i = 0; i < c.depth; ++i) {
    const double rate = c.depth > 1 ? c.drop_path * double(i) / double(c.depth - 1) : 0;
    blocks_.push_back(&child("blocks." + std::to_string(i), std::make_unique<VitBlock>(c, rate, g)));
  }
  norm_ = &child("norm", std::make_unique<LayerNorm>(c.width, c.norm_eps));
  head_in_ = &slot("head_in");
  head_ = &child("head", std::make_unique<Linear>(c.width, c.classes, true, g));
  if (c.distilled) {
    head_dist_in_ = &slot("head_dist_in");
    head_dist_ = &child("head_dist", std::make_unique<Linear>(c.width, c.classes, true, g));
  }
}

Variable VisionTransformer::features(const Variable& images) {
  check_images(images);
  const Variable tokens = patch_embed_(images);  // [B, T, C]
  const int64_t batch = tokens.size(0);
  std::vector<Variable> parts{expand_batch(cls_token_, batch)};
  if (dist_token_) parts.push_back(expand_batch(*dist_token_, batch));
  parts.push_back(tokens);
  Variable x = narrowed(add(concat(parts, 1), pos_embed_));
  for (VitBlock* block : blocks_) x = run([block](const Variable& v) { return (*block)(v); }, x);
  return (*norm_)(x);
}

ImageModel::Heads VisionTransformer::heads(const Variable& images) {
  const Variable x = features(images);
  Heads h;
  h.cls = (*head_)((*head_in_)(select(x, 1, 0)));
  if (head_dist_) h.dist = (*head_dist_)((*head_dist_in_)(select(x, 1, 1)));
  return h;
}

std::map<std::string, SlotInfo> VisionTransformer::slot_info() const {
  const VitConfig& c = config_;
  const int64_t n = c.tokens(), w = c.width;
  std::map<std::string, SlotInfo> all;
  all["patch_embed.in"] = {{1, c.in_channels, c.image_size, c.image_size}};
  for (int64_t i = 0; i < c.depth; ++i) {
    const std::string block = "blocks." + std::to_string(i);
    for (const char* slot : {".attn.in", ".mlp.in"}) all[block + slot] = {{1, n, w}};
    for (const char* slot : {".attn.v", ".attn.context"}) all[block + slot] = {{1, n, w}, c.heads};
    if (c.qk_reparam) {
      all[block + ".attn.qkx"] = {{1, c.heads, n, w}, c.heads};
      all[block + ".attn.qk.weight"] = {{c.heads * w, w}};
    } else {
      all[block + ".attn.q"] = all[block + ".attn.k"] = {{1, n, w}, c.heads};
    }
    all[block + ".attn.probs"] = {{1, c.heads, n, n}};
    all[block + ".mlp.hidden"] = {{1, n, c.hidden()}};
  }
  all["head_in"] = {{1, w}};
  if (c.distilled) all["head_dist_in"] = {{1, w}};
  return all;
}

Tensor VisionTransformer::fitted(const std::string& name, const Tensor& t) const {
  if (name != "pos_embed" || t.ndim() != 3 || t.size(2) != config_.width) return {};
  return resize_pos_embed(t, config_.prefix_tokens(), config_.grid());
}

std::vector<ProductCost> VisionTransformer::product_costs() const {
  static constexpr const char* kMlp[] = {"fc1", "fc2"};
  const VitConfig& c = config_;
  std::vector<ProductCost> all;
  all.push_back(linear_cost("patch_embed.proj", c.grid() * c.grid(), c.in_channels * c.patch * c.patch,
                            c.width, "patch_embed.in"));
  for (int64_t i = 0; i < c.depth; ++i) {
    const std::string block = "blocks." + std::to_string(i);
    add_block_costs(all, {block + ".attn", block + ".mlp", c.tokens(), c.tokens(), c.width, c.hidden(),
                          c.heads, c.split_qkv, c.qk_reparam, kMlp});
  }
  all.push_back(linear_cost("head", 1, c.width, c.classes, "head_in"));
  if (c.distilled) all.push_back(linear_cost("head_dist", 1, c.width, c.classes, "head_dist_in"));
  return all;
}

namespace {

VitConfig sized(std::string name, int64_t width, int64_t heads, bool distilled, bool half_statistics) {
  VitConfig c;
  c.name = std::move(name);
  c.width = width, c.heads = heads, c.distilled = distilled;
  if (half_statistics)
    for (int i = 0; i < 3; ++i) c.mean[i] = c.std[i] = 0.5f;
  return c;
}

std::vector<VitConfig> known() {
  std::vector<VitConfig> all;
  const struct {
    const char* size;
    int64_t width, heads;
  } sizes[] = {{"tiny", 192, 3}, {"small", 384, 6}, {"base", 768, 12}};
  for (const auto& s : sizes) {
    const std::string size = s.size;
    all.push_back(sized("deit_" + size + "_patch16_224", s.width, s.heads, false, false));
    all.push_back(sized("deit_" + size + "_distilled_patch16_224", s.width, s.heads, true, false));
    all.push_back(sized("vit_" + size + "_patch16_224", s.width, s.heads, false, true));
  }
  VitConfig tiny = sized("tinyvit_patch8_64", 96, 3, false, false);
  tiny.image_size = 64, tiny.patch = 8, tiny.depth = 4, tiny.mlp_ratio = 2, tiny.classes = 10;
  all.push_back(tiny);
  return all;
}

float cubic(float t) {  // a = −0.75
  constexpr float a = -0.75f;
  t = std::fabs(t);
  if (t <= 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
  if (t < 2) return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a;
  return 0;
}

}  // namespace

std::vector<std::string> vit_names() {
  std::vector<std::string> names;
  for (const VitConfig& c : known()) names.push_back(c.name);
  return names;
}

VitConfig vit_config(const std::string& name) {
  for (const VitConfig& c : known())
    if (c.name == name) return c;
  std::string list;
  for (const std::string& n : vit_names()) list += (list.empty() ? "" : ", ") + n;
  fail(ErrorKind::usage, "model", "no model is called '" + name + "'; known: " + list);
}

Tensor resize_pos_embed(const Tensor& pos, int64_t prefix, int64_t grid) {
  const int64_t c = pos.size(2), old = int64_t(std::llround(std::sqrt(double(pos.size(1) - prefix))));
  LOWBIT_CHECK(old > 0 && old * old == pos.size(1) - prefix, shape, "pos_embed",
               "tokens must form a square grid (got ", pos.str(), ", ", prefix, " prefix tokens)");
  if (old == grid) return pos;
  Tensor out = Tensor::empty({1, prefix + grid * grid, c});
  out.slice(1, 0, prefix).copy_from(pos.slice(1, 0, prefix));
  const Tensor in = pos.cast(DType::f32).packed();
  const float* src = in.data_const<float>() + prefix * c;
  float* dst = out.data<float>() + prefix * c;
  const float step = float(old) / float(grid);
  for (int64_t y = 0; y < grid; ++y)
    for (int64_t x = 0; x < grid; ++x) {
      const float cy = (float(y) + 0.5f) * step - 0.5f, cx = (float(x) + 0.5f) * step - 0.5f;
      const int64_t y0 = int64_t(std::floor(cy)), x0 = int64_t(std::floor(cx));
      for (int64_t k = 0; k < c; ++k) {
        float sum = 0;
        for (int64_t j = -1; j <= 2; ++j) {
          float row = 0;
          const int64_t yy = std::clamp<int64_t>(y0 + j, 0, old - 1);
          for (int64_t i = -1; i <= 2; ++i) {
            const int64_t xx = std::clamp<int64_t>(x0 + i, 0, old - 1);
            row += cubic(cx - float(x0 + i)) * src[(yy * old + xx) * c + k];
          }
          sum += cubic(cy - float(y0 + j)) * row;
        }
        dst[(y * grid + x) * c + k] = sum;
      }
    }
  return out;
}

}  // namespace lowbit
