#pragma once
// Models by name.

#include <functional>
#include <memory>

#include "nn/models/image_model.h"

namespace lowbit {

/// What a run may change of a named model; 0 keeps the model's own.
struct ModelChanges {
  int64_t image_size = 0, patch = 0, width = 0, depth = 0, heads = 0, classes = 0;
  double mlp_ratio = 0, dropout = 0, drop_path = 0;
  bool qk_reparam = false;
};

struct ModelPlan {
  ImageConfig config;
  std::function<std::unique_ptr<ImageModel>(uint64_t seed)> build;
};

/// The families of nn/models/vit.h, swin.h and sret.h under their published names. VVTQ's layout, with
/// separate q, k and v, is deit_…_quant and swin_tiny_…_quant; torchvision's is swin_t, swin_s and swin_b,
/// and OFQ's form of it swin_t_quant, …. Errors  usage: no such model, with names that begin alike; changes
/// that the family does not have
ModelPlan plan_model(const std::string& name, const ModelChanges& changes);
std::vector<std::string> model_names();

}  // namespace lowbit
