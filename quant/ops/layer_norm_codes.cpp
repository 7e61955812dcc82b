#include "quant/ops/layer_norm_codes.h"

#include "tensor/engine/row.h"

namespace lowbit {
namespace {

struct Count {
  int64_t* bad;
  void operator()(float n) const {
    if (n > 0) __atomic_fetch_add(bad, int64_t(n), __ATOMIC_RELAXED);
  }
};

template <class Out, class X>
void typed(const LayerNormCodesArgs& a) {
  cpu::rows(a.norm.rows, a.norm.n,
            LayerNormCodesRow<Out, X, Count>{
                a.norm, a.quant.c, a.quant.y.as<Out>(), float(a.quant.shift), {a.quant.bad}});
}

template <class Out>
void coded(const LayerNormCodesArgs& a) {
  if (a.norm.x.dtype == DType::bf16)
    typed<Out, bf16>(a);
  else
    typed<Out, float>(a);
}

void layer_norm_codes_cpu(const LayerNormCodesArgs& a, Stream) {
  if (a.quant.y.dtype == DType::u8)
    coded<uint8_t>(a);
  else
    coded<int8_t>(a);
}

}  // namespace

KernelSlot<LayerNormCodesArgs> layer_norm_codes{"layer_norm_codes", layer_norm_codes_cpu};

}  // namespace lowbit
