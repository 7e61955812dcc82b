#pragma once
#include "autograd/ops/windows.h"
#include "nn/layers/attention.h"

namespace lowbit {

/// Attention inside shifted windows of a map with a learned bias per head and relative position (Liu et
/// al. 2021).   x [B, H, W, C] → [B, H, W, C].
///   scores += table[index]ᵀ, − 100 between tokens that the roll brought together
/// Slots: those of Attention.
class WindowAttention : public Attention {
 public:
  struct Options {
    Attention::Options attention;
    int64_t height = 56, width = 56, window = 7, shift = 0;
    /// Form of the buffer: [N·N] (torchvision) or [N, N].
    bool flat_index = false;
  };
  WindowAttention(const Options& o, Generator& init);
  Variable operator()(const Variable& x);
  const WindowGrid& grid() const { return grid_; }
  /// 0 or −100, [windows, N, N]; undefined without a shift.
  const Tensor& mask() const { return mask_; }

 private:
  WindowGrid grid_;
  Variable& table_;  // [(2S − 1)², heads]
  Tensor& index_;    // row of the table per pair of tokens, N·N
  Tensor mask_;
};

}  // namespace lowbit
