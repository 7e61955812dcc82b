#include "quant/ops/l1_factor.h"

#include <vector>

#include "tensor/core/constant.h"
#include "tensor/engine/reduce.h"

namespace lowbit {
namespace {

void l1_factor_cpu(const L1FactorArgs& a, Stream) {
  if (a.kind == L1Factor::lsq)
    *static_cast<float*>(static_cast<void*>(a.work)) = cpu::sum(a.n, AbsElement<float>{a.w});
  else
    *a.work = cpu::sum(a.n, AbsElement<double>{a.w});
  for (int64_t g = 0; g < a.groups; ++g) l1_finish(a, g);
}

}  // namespace

constinit KernelSlot<L1FactorArgs> l1_factor{"l1_factor", l1_factor_cpu};

Tensor l1_factors(const Tensor& w, std::span<const int> highest, L1Factor kind) {
  const Tensor x = w.packed();
  const int64_t groups = int64_t(highest.size());
  Tensor factors = Tensor::empty({groups}, DType::f32, w.device());
  Tensor work = Tensor::empty({l1_workspace(x.numel())}, DType::f64, w.device());
  const std::vector<int32_t> levels(highest.begin(), highest.end());
  const Tensor top = constant(std::span<const int32_t>(levels), {groups}, w.device());
  l1_factor({x.data_const<float>(), x.numel(), factors.data<float>(), top.data_const<int32_t>(), groups,
             work.data<double>(), kind},
            w.device());
  return factors;
}

}  // namespace lowbit
