#include "quant/ops/layer_norm_codes.h"

#include "tensor/engine/row.cuh"

namespace lowbit {
namespace {

/// Host counters are out of reach.
struct Ignore {
  LOWBIT_HD void operator()(float) const {}
};

template <class Out, class X>
void typed(const LayerNormCodesArgs& a, Stream stream) {
  cuda::rows(
      a.norm.rows, a.norm.n,
      LayerNormCodesRow<Out, X, Ignore>{a.norm, a.quant.c, a.quant.y.as<Out>(), float(a.quant.shift), {}},
      stream);
}

template <class Out>
void coded(const LayerNormCodesArgs& a, Stream stream) {
  if (a.norm.x.dtype == DType::bf16)
    typed<Out, bf16>(a, stream);
  else
    typed<Out, float>(a, stream);
}

void layer_norm_codes_cuda(const LayerNormCodesArgs& a, Stream stream) {
  if (a.quant.y.dtype == DType::u8)
    coded<uint8_t>(a, stream);
  else
    coded<int8_t>(a, stream);
}

const CudaKernel<LayerNormCodesArgs> registered(layer_norm_codes, layer_norm_codes_cuda);

}  // namespace
}  // namespace lowbit
