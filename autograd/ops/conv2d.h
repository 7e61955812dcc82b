#pragma once
// Convolutions of channel-last maps, as matrix products or by a library.

#include "tensor/core/kernel_slot.h"
#include "tensor/core/tensor.h"
#include "tensor/hd/macros.h"

namespace lowbit {

class Variable;

struct ConvOptions {
  int64_t stride = 1, padding = 0, groups = 1;
};

/// A map [B, height, width, groups·depth] and the square kernels that run over it.
struct ConvGeometry {
  int64_t height = 0, width = 0, groups = 1, depth = 1, kernel = 1, stride = 1, padding = 0;

  LOWBIT_HD int64_t channels() const { return groups * depth; }
  LOWBIT_HD int64_t out(int64_t extent) const { return (extent + 2 * padding - kernel) / stride + 1; }
  LOWBIT_HD int64_t out_pixels() const { return out(height) * out(width); }
  LOWBIT_HD int64_t taps() const { return kernel * kernel; }

  /// Pixel of all maps under tap t of the kernel at output pixel p of all maps; −1 in the padding.
  LOWBIT_HD int64_t source(int64_t p, int64_t t) const {
    const int64_t w = out(width), in_map = p % out_pixels();
    const int64_t y = in_map / w * stride + t / kernel - padding,
                  x = in_map % w * stride + t % kernel - padding;
    const bool inside = y >= 0 && y < height && x >= 0 && x < width;
    return inside ? (p / out_pixels() * height + y) * width + x : -1;
  }
  /// Output pixel whose tap t lies on pixel p; −1 when there is none.
  LOWBIT_HD int64_t target(int64_t p, int64_t t) const {
    const int64_t y = p / width % height + padding - t / kernel, x = p % width + padding - t % kernel;
    const bool inside = y >= 0 && x >= 0 && y % stride == 0 && x % stride == 0 && y / stride < out(height) &&
                        x / stride < out(width);
    return inside ? p / (height * width) * out_pixels() + y / stride * out(width) + x / stride : -1;
  }
};

/// columns [output pixels, groups, taps, depth] ← x [pixels, groups, depth], packed, of one dtype; the
/// padding takes `pad`.
struct Im2colArgs {
  View columns, x;
  ConvGeometry g;
  int64_t out_pixels;  ///< of all maps
  int pad;             ///< the code of zero
};
/// dx[p, g, d] = Σ_t dcolumns[target(p, t), g, t, d], t increasing.
struct Col2imArgs {
  View dx, dcolumns;
  ConvGeometry g;
  int64_t pixels;  ///< of all maps
};
extern KernelSlot<Im2colArgs> im2col;
extern KernelSlot<Col2imArgs> col2im;

/// One of the three products of a convolution of packed f32 maps, by a library: y from x and w, dx from dy
/// and w, or dw from x and dy, where y holds dy, and x or w is what is written.
enum class ConvPass : uint8_t { forward, data_gradient, weight_gradient };
struct ConvArgs {
  ConvPass pass;
  float *x, *w, *y;  ///< [B, H, W, C], [O, K, K, C/groups], [B, H', W', O]
  ConvGeometry g;
  int64_t maps, outputs;  ///< B, O
  bool tf32;              ///< operands may be rounded to tf32
  void* work = nullptr;   ///< as many bytes as plan() said
};
/// cuDNN on CUDA (conv2d_cudnn.cu), where the build has it. Deterministic algorithms only, chosen once for
/// each form by the library's heuristic, so that a run has the same bits each time; their order of summation
/// is the library's.
struct ConvLibrary {
  /// False where the library has no such algorithm.
  bool (*plan)(const ConvArgs& a, Device d, size_t& work_bytes);
  void (*run)(const ConvArgs& a, Stream stream);
};
void set_conv_library(const ConvLibrary* library);
bool conv_library_present();

/// Convolution (cross-correlation) over channel-last maps, with zero padding.
///   y[b, i, j, o] = b[o] + Σ_t Σ_d x[b, i·stride + ty − padding, j·stride + tx − padding, d]·w[o, d, ty,
///   tx],
/// d over the channels of o's group.
/// Shapes  x [B, H, W, C];  w [O, C/groups, K, K];  b [O] or undefined;  y [B, H', W', O]
/// Grad    dx, dw: the same products with gy;  db = Σ gy over the pixels
/// Saves   x and w (codes when coded)
/// Order   gemm over (tap, channel);  dx: taps in increasing order;  db: reduce_sum (docs/numerics.md);
/// floats
///         on CUDA with Context::library_products: ConvLibrary
/// Source  none.  Two coded operands with one scale each, x without offset: an exact integer product
/// Errors  shape: dimensions, channels, extents;  dtype: operands differ;  value: options
Variable conv2d(const Variable& x, const Variable& w, const Variable& b, const ConvOptions& o);

}  // namespace lowbit
