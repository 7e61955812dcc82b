#pragma once
// Windows of a map, shifted cyclically: the moves around the attention of Swin.

#include "tensor/core/kernel_slot.h"
#include "tensor/core/tensor.h"
#include "tensor/hd/macros.h"

namespace lowbit {

class Variable;

/// Square windows of side `size` on a map of `height` × `width`, which is padded with zeros at the bottom and
/// right to multiples of it and then rolled up by shift_y and left by shift_x.
struct WindowGrid {
  int64_t height = 0, width = 0, size = 1, shift_y = 0, shift_x = 0;

  LOWBIT_HD int64_t rows() const { return (height + size - 1) / size; }
  LOWBIT_HD int64_t columns() const { return (width + size - 1) / size; }
  LOWBIT_HD int64_t windows() const { return rows() * columns(); }
  LOWBIT_HD int64_t padded() const { return windows() * size * size; }

  /// Token t of all windows → token of all maps, −1 in the padding.
  LOWBIT_HD int64_t map_token(int64_t t) const {
    const int64_t x_in = t % size, y_in = t / size % size, window = t / (size * size) % windows();
    const int64_t y = (window / columns() * size + y_in + shift_y) % (rows() * size);
    const int64_t x = (window % columns() * size + x_in + shift_x) % (columns() * size);
    return y < height && x < width ? (t / padded() * height + y) * width + x : -1;
  }
  /// The inverse: token of all maps → token of all windows.
  LOWBIT_HD int64_t window_token(int64_t t) const {
    const int64_t h = rows() * size, w = columns() * size;
    const int64_t y = (t / width % height + h - shift_y) % h, x = (t % width + w - shift_x) % w;
    const int64_t window = y / size * columns() + x / size;
    return t / (height * width) * padded() + (window * size + y % size) * size + x % size;
  }
};

/// One token of `n` values after another: `to_windows` y [B·windows, size², n] ← x [B, height, width, n],
/// else the way back, which leaves the padding behind. Packed, one dtype.
struct WindowArgs {
  View y, x;
  WindowGrid grid;
  int64_t tokens, n;  ///< tokens of y
  bool to_windows;
  LOWBIT_HD int64_t source(int64_t t) const { return to_windows ? grid.map_token(t) : grid.window_token(t); }
};
extern KernelSlot<WindowArgs> window_move;

/// Windows row-major and batch-major, tokens of a window row-major.
/// Shapes  x [B, height, width, C] → [B·windows, size², C]
/// Grad    the way back
/// Saves   nothing    Order  none
/// Source  Liu et al. 2021, section 3.2
/// Errors  shape: x is not [B, height, width, C];  value: size < 1, shifts outside [0, size)
Variable window_partition(const Variable& x, const WindowGrid& g);

/// The inverse.   Shapes  [B·windows, size², C] → [B, height, width, C]
Variable window_merge(const Variable& x, const WindowGrid& g);

}  // namespace lowbit
