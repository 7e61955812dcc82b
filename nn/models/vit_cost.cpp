#include "nn/models/vit_cost.h"

namespace lowbit {

std::vector<ProductCost> product_costs(const VitConfig& c) {
  std::vector<ProductCost> all;
  const int64_t n = c.tokens(), w = c.width, patch = c.in_channels * c.patch * c.patch;
  const auto linear = [&](const std::string& name, int64_t rows, int64_t in, int64_t out,
                          const std::string& left) {
    all.push_back({name, rows * in * out, in * out, left, name + ".weight"});
  };
  linear("patch_embed.proj", c.grid() * c.grid(), patch, w, "patch_embed.in");
  for (int64_t i = 0; i < c.depth; ++i) {
    const std::string block = "blocks." + std::to_string(i), attn = block + ".attn", mlp = block + ".mlp";
    if (c.split_qkv)
      for (const char* part : {".proj_q", ".proj_k", ".proj_v"}) linear(attn + part, n, w, w, attn + ".in");
    else
      linear(attn + ".qkv", n, w, 3 * w, attn + ".in");
    all.push_back({attn + ".scores", n * n * w, 0, attn + ".q", attn + ".k"});
    all.push_back({attn + ".context", n * n * w, 0, attn + ".probs", attn + ".v"});
    linear(attn + ".proj", n, w, w, attn + ".context");
    linear(mlp + ".fc1", n, w, c.hidden(), mlp + ".in");
    linear(mlp + ".fc2", n, c.hidden(), w, mlp + ".hidden");
  }
  linear("head", 1, w, c.classes, "head_in");
  if (c.distilled) linear("head_dist", 1, w, c.classes, "head_dist_in");
  return all;
}

}  // namespace lowbit
