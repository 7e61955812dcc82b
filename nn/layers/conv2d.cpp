#include "nn/layers/conv2d.h"

#include <cmath>

#include "autograd/ops/batch_norm.h"
#include "nn/core/init.h"

namespace lowbit {

Conv2d::Conv2d(int64_t in_channels, int64_t out_channels, int64_t kernel, const ConvOptions& o, Generator& g)
    : options_(o),
      weight_(
          param("weight", init::uniform({out_channels, in_channels / o.groups, kernel, kernel},
                                        1 / std::sqrt(double(in_channels / o.groups * kernel * kernel)), g))),
      bias_(param(
          "bias",
          init::uniform({out_channels}, 1 / std::sqrt(double(in_channels / o.groups * kernel * kernel)), g),
          false)),
      weight_slot_(slot("weight")) {}

Variable Conv2d::operator()(const Variable& x) { return conv2d(x, weight_slot_(weight_), bias_, options_); }

BatchNorm::BatchNorm(int64_t channels, double eps, double momentum)
    : weight_(param("weight", Tensor::full({channels}, 1), false)),
      bias_(param("bias", Tensor::zeros({channels}), false)),
      running_mean_(buffer("running_mean", Tensor::zeros({channels}))),
      running_var_(buffer("running_var", Tensor::full({channels}, 1))),
      count_(optional_buffer("num_batches_tracked", Tensor::zeros(Shape{}, DType::i64))),
      eps_(eps),
      momentum_(momentum) {}

Variable BatchNorm::operator()(const Variable& x) {
  if (training()) batch_norm_count({count_.data<int64_t>()}, count_.device());
  return batch_norm(x, weight_, bias_, running_mean_, running_var_, training(), momentum_, eps_);
}

}  // namespace lowbit
