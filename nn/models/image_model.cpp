#include "nn/models/image_model.h"

#include "autograd/ops/broadcast.h"
#include "autograd/ops/pointwise.h"

namespace lowbit {

Variable ImageModel::operator()(const Variable& images) {
  const Heads h = heads(images);
  return h.dist.defined() ? scale(add(h.cls, h.dist), 0.5) : h.cls;
}

void ImageModel::check_images(const Variable& x) const {
  const ImageConfig& c = config();
  LOWBIT_CHECK(
      x.ndim() == 4 && x.size(1) == c.in_channels && x.size(2) == c.image_size && x.size(3) == c.image_size,
      shape, "model", "images must be [B, ", c.in_channels, ", ", c.image_size, ", ", c.image_size, "] (got ",
      x.str(), ")");
}

ProductCost linear_cost(const std::string& name, int64_t rows, int64_t in, int64_t out,
                        const std::string& input_slot, int64_t groups) {
  if (groups == 1) return {name, {rows, in}, {out, in}, true, input_slot, name + ".weight"};
  return {name,
          {groups, rows, in / groups},
          {groups, out / groups, in / groups},
          true,
          input_slot,
          name + ".weight"};
}

void add_block_costs(std::vector<ProductCost>& all, const BlockShape& b) {
  const int64_t n = b.tokens, w = b.width, h = b.heads, g = b.group, batch = n / g * h, d = w / h;
  const std::string in = b.attn + ".in";
  if (b.qk_reparam) {
    all.push_back({b.attn + ".qk", {n, w}, {h * w, w}, true, in, b.attn + ".qk.weight"});
    all.push_back(linear_cost(b.attn + ".v", n, w, w, in));
    all.push_back({b.attn + ".scores", {n / g, g, w}, {n / g, g * h, w}, false, in, b.attn + ".qkx"});
  } else {
    if (b.split_qkv)
      for (const char* part : {".proj_q", ".proj_k", ".proj_v"})
        all.push_back(linear_cost(b.attn + part, n, w, w, in));
    else
      all.push_back(linear_cost(b.attn + ".qkv", n, w, 3 * w, in));
    all.push_back({b.attn + ".scores", {batch, g, d}, {batch, g, d}, false, b.attn + ".q", b.attn + ".k"});
  }
  all.push_back({b.attn + ".context", {batch, g, g}, {batch, d, g}, false, b.attn + ".probs", b.attn + ".v"});
  all.push_back(linear_cost(b.attn + ".proj", n, w, w, b.attn + ".context"));
  all.push_back(linear_cost(b.mlp + "." + b.mlp_names[0], n, w, b.hidden, b.mlp + ".in"));
  all.push_back(linear_cost(b.mlp + "." + b.mlp_names[1], n, b.hidden, w, b.mlp + ".hidden"));
}

}  // namespace lowbit
