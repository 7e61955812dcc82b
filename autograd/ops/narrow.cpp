#include "autograd/ops/narrow.h"

#include "autograd/core/node.h"
#include "autograd/ops/check.h"

namespace lowbit {
namespace {

struct NarrowedNode final : Node {
  const char* name() const override { return "narrowed"; }
  void backward(const Tensor& gy, GradSink& gx) override { gx.add(0, gy); }
  void release() override {}
  std::vector<Tensor> saved() const override { return {}; }
};

}  // namespace

Variable narrowed(const Variable& x) {
  check_float("narrowed", "x", x);
  if (!stores_narrow(x) || x.narrow()) return x;
  return record(Narrow{x.data().packed().cast(DType::bf16)}, std::make_shared<NarrowedNode>(), {x});
}

}  // namespace lowbit
