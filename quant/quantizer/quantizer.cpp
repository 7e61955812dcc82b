#include "quant/quantizer/quantizer.h"

#include <utility>

#include "autograd/core/node.h"
#include "tensor/core/context.h"

namespace lowbit {

const char* quant_state_name(QuantState s) {
  switch (s) {
    case QuantState::off:
      return "off";
    case QuantState::observe:
      return "observe";
    case QuantState::fixed:
      return "fixed";
    case QuantState::learned:
      return "learned";
  }
  return "?";
}

Variable Quantizer::apply(const Variable& x) {
  switch (state_) {
    case QuantState::off:
      return x;
    case QuantState::observe:
      observe(x.data());
      return x;
    default:
      return fake_quant(x);
  }
}

void Quantizer::set_quant_state(QuantState to, std::string_view reason) {
  if (to == state_) return;
  on_state(state_, to);
  note(str_cat(quant_state_name(state_), " -> ", quant_state_name(to), ": ", reason));
  state_ = to;
}

Tensor Quantizer::codes(const Tensor& x) {
  struct Restore {
    bool before = std::exchange(context().integer_products, true);
    ~Restore() { context().integer_products = before; }
  };
  const NoGrad off;
  const Restore restore;
  const Variable y = fake_quant(Variable(x));
  LOWBIT_CHECK(y.coded(), value, label_, "this layout has no integer codes (got x=", x.str(), ")");
  const Coded& c = *y.coded();
  Tensor levels = c.codes.to(Device{}).packed().cast(DType::i32);
  int32_t* v = levels.data<int32_t>();
  for (int64_t i = 0; i < levels.numel(); ++i) v[i] += int32_t(c.shift);
  return levels;
}

}  // namespace lowbit
