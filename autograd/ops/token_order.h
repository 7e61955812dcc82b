#pragma once
// Orders of tokens as index tables, made where they are used.

#include "tensor/core/kernel_slot.h"
#include "tensor/core/tensor.h"
#include "tensor/hd/philox.h"

namespace lowbit {

/// A random permutation of 0 … n − 1 from the draws 1 … n − 1 of `key`: from the last place down, each place
/// i changes with place philox_below(key, i, i + 1).   Shapes  i64 [n]
/// Source  Fisher & Yates; Knuth, algorithm P.   Not differentiable
Tensor drawn_order(const RngKey& key, int64_t n, Device d);

/// Rows of [batch·n, …] that put the tokens of every sample into an order: out[b·n + i] = b·n + order[i], or
/// with `inverse` out[b·n + order[i]] = b·n + i, which undoes it.   Shapes  order i64 [n], out i64 [batch·n]
Tensor order_rows(const Tensor& order, int64_t batch, bool inverse);

struct DrawnOrderArgs {
  RngKey key;
  int64_t* out;
  int64_t n;
};
struct OrderRowsArgs {
  const int64_t* order;
  int64_t* out;
  int64_t batch, n;
  bool inverse;
};
extern KernelSlot<DrawnOrderArgs> drawn_order_kernel;
extern KernelSlot<OrderRowsArgs> order_rows_kernel;

/// Every place follows from the one before: there is no parallel form of this sequence.
LOWBIT_HD void draw_order(const DrawnOrderArgs& a) {
  for (int64_t i = 0; i < a.n; ++i) a.out[i] = i;
  for (int64_t i = a.n - 1; i > 0; --i) {
    const int64_t j = philox_below(a.key, uint64_t(i), uint64_t(i) + 1), t = a.out[i];
    a.out[i] = a.out[j], a.out[j] = t;
  }
}
LOWBIT_HD void order_row(const OrderRowsArgs& a, int64_t r) {
  const int64_t first = r / a.n * a.n, i = r - first;
  if (a.inverse)
    a.out[first + a.order[i]] = r;
  else
    a.out[r] = first + a.order[i];
}

}  // namespace lowbit
