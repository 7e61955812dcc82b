#include "train/config/backward.h"

#include "tensor/core/error.h"
#include "tensor/engine/isa.h"
#include "train/config/device.h"

namespace lowbit {
namespace {

struct Kind {
  const char* name;
  BackwardProducts products;
};
constexpr Kind kKinds[] = {{"f32", BackwardProducts::f32},       {"int8x2", BackwardProducts::int8x2},
                           {"int8x3", BackwardProducts::int8x3}, {"bf16", BackwardProducts::bf16},
                           {"bf16x2", BackwardProducts::bf16x2}, {"bf16x3", BackwardProducts::bf16x3}};

const char* name_of(BackwardProducts p) {
  for (const Kind& k : kKinds)
    if (p == k.products) return k.name;
  fail(ErrorKind::internal, "backward", "products without a name");
}

}  // namespace

BackwardProducts fastest_backward(Device device) {
  return fast_integer_products(device) ? BackwardProducts::int8x3 : BackwardProducts::f32;
}

BackwardProducts backward_products(const Options& o) {
  for (const Kind& k : kKinds)
    if (o.text("backward") == k.name) return k.products;
  return fastest_backward(run_device(o));
}

Options with_backward(Options o, const std::string& kind) {
  if (o.text("backward") == "auto")
    o.set("backward", kind.empty() ? name_of(backward_products(o)) : kind, OptionOrigin::machine);
  return o;
}

}  // namespace lowbit
