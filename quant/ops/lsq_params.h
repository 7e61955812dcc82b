#pragma once
// What ops that contain the quantizer of lsq.h share with it. Included by .cpp files of ops only.

#include "autograd/core/node.h"
#include "quant/ops/lsq.h"

namespace lowbit {

/// The parameters of a call: private copies, written by nobody, shared by forward and backward.
struct LsqParams {
  Tensor scale, offset, bounds, slots, grad_scale, before;
  bool own_slots = false;  ///< no two groups share a scale
  LsqCall call{};          ///< with views of them; x is set where the kernel is called
};
LsqParams lsq_params(const Shape& x, DType dtype, Device device, const Tensor& scale, const Tensor& offset,
                     const LsqSettings& s, const Tensor& before = {});

/// Whether the result can be handed on as integer codes, and these without the tensor of codes.
bool lsq_codable(const Variable& x, bool has_offset, const LsqSettings& s);
Coded lsq_codes(const LsqParams& p, const LsqSettings& s);
Tensor empty_codes(const LsqSettings& s, const Shape& shape, Device device);

/// Places for the gradients of scale, offset and nbits, the inputs 1, 2 and 3, that are wanted.
struct LsqParameterGradients {
  Tensor d[3];
  LsqOutputs out{};
  LsqParameterGradients(const LsqParams& p, GradSink& gx);
  void add(GradSink& gx) const;
};

/// "x must be finite"
void check_finite_count(int64_t bad, int64_t count, const LsqSettings& s);

}  // namespace lowbit
