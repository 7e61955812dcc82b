#include "nn/models/factory.h"

#include "nn/models/sret.h"
#include "nn/models/swin.h"
#include "nn/models/vit.h"

namespace lowbit {
namespace {

/// One named configuration and how its fields follow the changes.
struct Named {
  std::string name;
  std::function<ModelPlan(const ModelChanges&)> plan;
};

void take(int64_t& field, int64_t value) {
  if (value > 0) field = value;
}

void take_common(ImageConfig& c, const ModelChanges& m) {
  take(c.image_size, m.image_size), take(c.classes, m.classes);
  c.dropout = m.dropout, c.drop_path = m.drop_path;
}

template <class Model, class Config>
ModelPlan plan_of(const Config& c) {
  return {c, [c](uint64_t seed) { return std::make_unique<Model>(c, seed); }};
}

ModelPlan plan(VitConfig c, const ModelChanges& m) {
  take_common(c, m);
  take(c.patch, m.patch), take(c.width, m.width), take(c.depth, m.depth), take(c.heads, m.heads);
  if (m.mlp_ratio > 0) c.mlp_ratio = m.mlp_ratio;
  c.qk_reparam = m.qk_reparam;
  LOWBIT_CHECK(c.width % c.heads == 0, usage, "model", "--heads must divide the width (got ", c.heads,
               " heads, --embed-dim ", c.width, ")");
  LOWBIT_CHECK(c.image_size % c.patch == 0, usage, "model",
               "--image-size must be a multiple of --patch-size (got ", c.image_size, " and ", c.patch, ")");
  return plan_of<VisionTransformer>(c);
}

/// Models of several stages keep the stages they have.
void require_no_stages(const std::string& name, const ModelChanges& m) {
  LOWBIT_CHECK(
      m.patch == 0 && m.width == 0 && m.depth == 0 && m.heads == 0, usage, "model", name,
      " has stages: --patch-size, --embed-dim, --depth and --heads are for vision transformers of one");
}

ModelPlan plan(SwinConfig c, const ModelChanges& m) {
  require_no_stages(c.name, m);
  take_common(c, m);
  if (m.mlp_ratio > 0) c.mlp_ratio = m.mlp_ratio;
  c.qk_reparam = m.qk_reparam;
  if (c.qk_reparam && c.layout == SwinLayout::torchvision) c.layout = SwinLayout::ofq;  // as published
  return plan_of<SwinTransformer>(c);
}

ModelPlan plan(SretConfig c, const ModelChanges& m) {
  require_no_stages(c.name, m);
  LOWBIT_CHECK(!m.qk_reparam, usage, "model", "--qk-reparam is for models that attend over all tokens of a ",
               "window or image (got ", c.name, ")");
  take_common(c, m);
  if (m.mlp_ratio > 0) c.mlp_ratio = m.mlp_ratio;
  return plan_of<SretTransformer>(c);
}

template <class Config>
void add(std::vector<Named>& all, const Config& c) {
  all.push_back({c.name, [c](const ModelChanges& m) { return plan(c, m); }});
}

std::vector<Named> known() {
  std::vector<Named> all;
  for (const std::string& name : vit_names()) {
    VitConfig c = vit_config(name);
    add(all, c);
    if (!name.starts_with("deit")) continue;
    c.name += "_quant", c.split_qkv = true;
    add(all, c);
  }
  for (SwinConfig c : swin_configs()) {
    add(all, c);
    c.name += "_quant", c.split_qkv = true;
    add(all, c);
  }
  for (SwinConfig c : swin_configs()) {  // swin_tiny_… → swin_t
    c.name = c.name.substr(0, 6), c.layout = SwinLayout::torchvision;
    add(all, c);
    c.name += "_quant", c.layout = SwinLayout::ofq;
    add(all, c);
  }
  for (const SretConfig& c : sret_configs()) add(all, c);
  return all;
}

}  // namespace

std::vector<std::string> model_names() {
  std::vector<std::string> names;
  for (const Named& n : known()) names.push_back(n.name);
  return names;
}

ModelPlan plan_model(const std::string& name, const ModelChanges& changes) {
  for (const Named& n : known())
    if (n.name == name) return n.plan(changes);
  std::string alike;  // names that begin in the same way
  int count = 0;
  for (const std::string& n : model_names())
    if (count < 6 && n.starts_with(name.substr(0, std::max<size_t>(4, name.rfind('_')))))
      alike += (count++ ? ", " : "; did you mean ") + n;
  fail(ErrorKind::usage, "model", "no model is called '" + name + "'" + alike + "; 'help models' lists all");
}

}  // namespace lowbit
