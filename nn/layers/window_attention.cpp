#include "nn/layers/window_attention.h"

#include "autograd/ops/broadcast.h"
#include "autograd/ops/embedding.h"
#include "autograd/ops/shape.h"
#include "nn/core/init.h"

namespace lowbit {
namespace {

/// An axis that the window covers is not shifted.
WindowGrid grid_of(const WindowAttention::Options& o) {
  WindowGrid g{.height = o.height, .width = o.width, .size = o.window};
  if (g.rows() > 1) g.shift_y = o.shift;
  if (g.columns() > 1) g.shift_x = o.shift;
  return g;
}

/// (dy + S − 1)·(2S − 1) + dx + S − 1 with dy, dx = position of the query minus that of the key.
Tensor relative_index(int64_t size, bool flat) {
  const int64_t n = size * size;
  Tensor index = Tensor::empty(flat ? Shape{n * n} : Shape{n, n}, DType::i64);
  int64_t* to = index.data<int64_t>();
  for (int64_t q = 0; q < n; ++q)
    for (int64_t k = 0; k < n; ++k)
      *to++ = (q / size - k / size + size - 1) * (2 * size - 1) + q % size - k % size + size - 1;
  return index;
}

/// Regions of one axis of the rolled map, by its last window: [0, −S), [−S, −shift), [−shift, end).
int64_t region(int64_t position, int64_t extent, int64_t size, int64_t shift) {
  if (position >= extent - shift || shift == 0) return 2;
  return position >= extent - size ? 1 : 0;
}

Tensor shift_mask(const WindowGrid& g) {
  const int64_t n = g.size * g.size;
  Tensor mask = Tensor::empty({g.windows(), n, n});
  float* to = mask.data<float>();
  const auto label = [&](int64_t window, int64_t t) {
    const int64_t y = window / g.columns() * g.size + t / g.size,
                  x = window % g.columns() * g.size + t % g.size;
    return 3 * region(y, g.rows() * g.size, g.size, g.shift_y) +
           region(x, g.columns() * g.size, g.size, g.shift_x);
  };
  for (int64_t w = 0; w < g.windows(); ++w)
    for (int64_t q = 0; q < n; ++q)
      for (int64_t k = 0; k < n; ++k) *to++ = label(w, q) == label(w, k) ? 0.f : -100.f;
  return mask;
}

}  // namespace

WindowAttention::WindowAttention(const Options& o, Generator& g)
    : Attention(o.attention, g),
      grid_(grid_of(o)),
      table_(
          param("relative_position_bias_table",
                init::trunc_normal({(2 * o.window - 1) * (2 * o.window - 1), o.attention.heads}, 0.02, g))),
      index_(optional_buffer("relative_position_index", relative_index(o.window, o.flat_index))),
      mask_(grid_.shift_y || grid_.shift_x ? shift_mask(grid_) : Tensor{}) {}

Variable WindowAttention::operator()(const Variable& x) {
  const int64_t n = grid_.size * grid_.size;
  const Variable rows = reshape(embedding(table_, index_), {1, n, n, -1});  // [1, N, N, heads]
  Variable bias = permute(rows, {0, 3, 1, 2});
  if (mask_.defined() && mask_.device() != x.device()) mask_ = mask_.to(x.device());
  if (mask_.defined()) bias = add(bias, Variable(mask_.unsqueeze(1)));  // [windows, heads, N, N]
  return window_merge(Attention::operator()(window_partition(x, grid_), {.bias = bias}), grid_);
}

}  // namespace lowbit
