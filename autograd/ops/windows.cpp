#include "autograd/ops/windows.h"

#include <algorithm>
#include <cstring>

#include "autograd/core/node.h"
#include "autograd/ops/check.h"
#include "tensor/core/thread_pool.h"

namespace lowbit {
namespace {

void move_cpu(const WindowArgs& a, Stream) {
  const size_t bytes = size_t(a.n) * dtype_size(a.x.dtype);
  char* const y = static_cast<char*>(a.y.data);
  const char* const x = static_cast<const char*>(a.x.data);
  parallel_for(a.tokens, std::max<int64_t>(1, (1 << 17) / int64_t(bytes + 1)), [=](int64_t b, int64_t e) {
    for (int64_t t = b; t < e; ++t) {
      const int64_t from = a.source(t);
      if (from < 0)
        std::memset(y + size_t(t) * bytes, 0, bytes);
      else
        std::memcpy(y + size_t(t) * bytes, x + size_t(from) * bytes, bytes);
    }
  });
}

Tensor moved(const Tensor& x, const WindowGrid& g, bool to_windows) {
  const int64_t n = x.size(-1), batch = to_windows ? x.size(0) : x.size(0) / g.windows();
  Tensor y = Tensor::empty(
      to_windows ? Shape{batch * g.windows(), g.size * g.size, n} : Shape{batch, g.height, g.width, n},
      x.dtype(), x.device());
  const Tensor packed = x.packed();
  window_move({y.mutable_view(), packed.view(), g, n ? y.numel() / n : 0, n, to_windows}, x.device());
  return y;
}

struct WindowNode final : Node {
  WindowGrid grid;
  bool to_windows = true;
  const char* name() const override { return to_windows ? "window_partition" : "window_merge"; }
  void backward(const Tensor& gy, GradSink& gx) override {
    if (gx.wants(0)) gx.add(0, moved(gy, grid, !to_windows));
  }
  void release() override {}
  std::vector<Tensor> saved() const override { return {}; }
};

Variable move(const Variable& x, const WindowGrid& g, bool to_windows) {
  auto node = std::make_shared<WindowNode>();
  node->grid = g, node->to_windows = to_windows;
  check_float(node->name(), "x", x);
  LOWBIT_CHECK(g.size > 0 && 0 <= g.shift_y && g.shift_y < g.size && 0 <= g.shift_x && g.shift_x < g.size,
               value, node->name(), "shifts must lie in [0, size) (got size=", g.size, ", shift=", g.shift_y,
               ", ", g.shift_x, ")");
  if (x.narrow()) return record(Narrow{moved(*x.narrow(), g, to_windows)}, std::move(node), {x});
  return record(moved(x.data(), g, to_windows), std::move(node), {x});
}

}  // namespace

KernelSlot<WindowArgs> window_move{"window_move", move_cpu};

Variable window_partition(const Variable& x, const WindowGrid& g) {
  LOWBIT_CHECK(x.ndim() == 4 && x.size(1) == g.height && x.size(2) == g.width && g.height > 0 && g.width > 0,
               shape, "window_partition", "x must be [B, ", g.height, ", ", g.width, ", C] (got x=", x.str(),
               ")");
  return move(x, g, true);
}

Variable window_merge(const Variable& x, const WindowGrid& g) {
  LOWBIT_CHECK(x.ndim() == 3 && g.size > 0 && x.size(1) == g.size * g.size && x.size(0) % g.windows() == 0,
               shape, "window_merge", "x must be [B·", g.windows(), ", ", g.size * g.size,
               ", C] (got x=", x.str(), ")");
  return move(x, g, false);
}

}  // namespace lowbit
