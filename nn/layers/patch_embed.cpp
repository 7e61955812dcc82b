#include "nn/layers/patch_embed.h"

#include <cmath>

#include "autograd/ops/linear.h"
#include "autograd/ops/shape.h"
#include "nn/core/init.h"

namespace lowbit {

// U(±1/√fan_in) for both, the framework default of the published models.
PatchConv::PatchConv(int64_t in_channels, int64_t width, int64_t patch, Generator& g)
    : weight_(param("weight", init::uniform({width, in_channels, patch, patch},
                                            1 / std::sqrt(double(in_channels * patch * patch)), g))),
      bias_(param("bias", init::uniform({width}, 1 / std::sqrt(double(in_channels * patch * patch)), g),
                  false)),
      weight_slot_(slot("weight")),
      patch_(patch) {}

Variable PatchConv::operator()(const Variable& x) {
  const int64_t width = weight_.size(0);
  return linear(patches(x, patch_), reshape(weight_slot_(weight_), {width, -1}), bias_);
}

PatchEmbed::PatchEmbed(int64_t in_channels, int64_t width, int64_t patch, Generator& g)
    : in_(slot("in")), proj_(child("proj", std::make_unique<PatchConv>(in_channels, width, patch, g))) {}

}  // namespace lowbit
