#include "quant/ops/layer_norm_codes.h"

#include "tensor/engine/row.cuh"

namespace lowbit {
namespace {

/// Host counters are out of reach.
struct Ignore {
  LOWBIT_HD void operator()(float) const {}
};

template <class Out>
void typed(const LayerNormCodesArgs& a, Stream stream) {
  cuda::rows(a.norm.rows, a.norm.n,
             LayerNormCodesRow<Out, Ignore>{a.norm, a.quant.c, a.quant.y.as<Out>(), float(a.quant.shift), {}},
             stream);
}

void layer_norm_codes_cuda(const LayerNormCodesArgs& a, Stream stream) {
  if (a.quant.y.dtype == DType::u8)
    typed<uint8_t>(a, stream);
  else
    typed<int8_t>(a, stream);
}

const CudaKernel<LayerNormCodesArgs> registered(layer_norm_codes, layer_norm_codes_cuda);

}  // namespace
}  // namespace lowbit
