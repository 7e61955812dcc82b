#pragma once
#include "autograd/core/variable.h"
#include "nn/core/module.h"
#include "quant/ops/bin_regularizer.h"

namespace lowbit {

/// g of a weight with the highest level Qp, [1], rounded to float: 1/√(Σ|w|·Qp), of a convolution
/// 1/√(numel·Qp). Whether a bin counts hangs on the last bit of the scale, so it must have all of its own
/// right.
Tensor bin_gradient_factor(const Tensor& w, bool convolution, int highest);

/// Σ R over every weight that an LSQ quantizer of 2 … 8 bits quantizes, first and last layer included
/// (quant/ops/bin_regularizer.h); [1]. Undefined when there is none. Convolutions use the gradient factor of
/// LSQ, 1/√(numel·Qp), where their forward uses the L1 norm, as published (vvtq.md 14, item 5). Errors usage:
/// a quantizer with several scales (head-wise)
Variable weight_regularizer(Module& model, MembershipTest membership = MembershipTest::published);

/// Σ of quant/ops/dampening.h over the weights that LSQ (`lsq`, `ofq`) and StatsQ quantizers of 2 … 8 bits
/// quantize; [1]. The interval of StatsQ is [−a, a]. Undefined when there is none.
Variable dampening_regularizer(Module& model);

}  // namespace lowbit
