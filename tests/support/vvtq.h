#pragma once
// The small networks of the VVTQ golden files.

#include "nn/models/sret.h"
#include "nn/models/swin.h"
#include "nn/models/vit.h"
#include "quant/scheme/scheme.h"
#include "tests/support/golden.h"

namespace lowbit::test {

template <class Model = VisionTransformer, class Config>
std::unique_ptr<ImageModel> quantized(const Config& c, const SchemeOptions& o) {
  auto model = std::make_unique<Model>(c, 0);
  Scheme scheme = load_scheme("vvtq", o);
  for (Rule& r : scheme.rules) r.settings["published_scale"] = "yes";  // to the last bit
  install(*model, scheme);
  placed(*model);
  return model;
}

inline SchemeOptions small_bits(const GoldenFile& g) {
  SchemeOptions o;
  for (const std::string& name : g.names_with_prefix("param."))
    if (name.ends_with(".mlp.fc1.nbits")) o.wbits = o.abits = int(g.tensor(name).item<float>());
  return o;
}

inline std::unique_ptr<ImageModel> small_deit(const GoldenFile& g) {
  const nlohmann::json config = g.meta_json("config");
  VitConfig c;
  c.image_size = config.at("img_size"), c.patch = config.at("patch_size"), c.width = config.at("embed_dim");
  c.depth = config.at("depth"), c.heads = config.at("num_heads"), c.classes = config.at("num_classes");
  c.split_qkv = true;
  return quantized(c, small_bits(g));
}

inline std::unique_ptr<ImageModel> small_swin(const GoldenFile& g) {
  const nlohmann::json config = g.meta_json("config");
  SwinConfig c;
  c.image_size = config.at("img_size"), c.patch = config.at("patch_size"), c.width = config.at("embed_dim");
  c.depths = config.at("depths").get<std::vector<int64_t>>();
  c.heads = config.at("num_heads").get<std::vector<int64_t>>();
  c.window = config.at("window_size"), c.classes = config.at("num_classes"), c.split_qkv = true;
  return quantized<SwinTransformer>(c, small_bits(g));
}

inline std::unique_ptr<ImageModel> small_sret(const GoldenFile& g) {
  const nlohmann::json config = g.meta_json("config");
  const auto list = [&](const char* key) { return config.at(key).get<std::vector<int64_t>>(); };
  SretConfig c;
  c.image_size = config.at("image_size"), c.classes = config.at("num_classes");
  c.base = list("base_dims"), c.heads = list("heads"), c.blocks = list("recursive_num");
  c.groups1 = list("groups1"), c.groups2 = list("groups2");
  c.mlp_ratio = config.at("mlp_ratio"), c.nonproj_ratio = config.at("np_mlp_ratio");
  auto model = quantized<SretTransformer>(c, small_bits(g));
  dynamic_cast<SretTransformer&>(*model).order = [&g](int64_t k, int64_t) {
    return g.tensor("perm" + std::to_string(k)).cast(DType::i64);
  };
  return model;
}

}  // namespace lowbit::test
