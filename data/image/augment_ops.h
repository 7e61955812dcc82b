#pragma once
// The 8-bit image operations of RandAugment and of colour jitter, equal to Pillow's bit for bit.

#include <array>
#include <cstdint>

#include "data/image/resize.h"

namespace lowbit {

using Rgb = std::array<uint8_t, 3>;

/// Per channel: stretches the used range lo … hi to 0 … 255, int(i·s − lo·s), s = 255/(hi − lo).
void auto_contrast(Image& image);
/// Per channel: lut[i] = min(255, n/step) with n = step/2 + Σ_{j<i} h[j], step = (pixels − h[highest
/// used])/255; unchanged if step is 0 or one value is used.
void equalize(Image& image);
void invert(Image& image);
/// Keeps the highest `bits` bits; 0: black; 8 and more: unchanged.
void posterize(Image& image, int bits);
/// x < threshold ? x : 255 − x.
void solarize(Image& image, int threshold);
/// x < 128 ? min(255, x + add) : x.
void solarize_add(Image& image, int add);

/// d + f·(x − d) in float, clamped and truncated, with a degenerate image d:
///   color       the luma l = (19595 R + 38470 G + 7471 B + 2^15) >> 16 of the pixel
///   contrast    int(mean of l + ½) everywhere
///   brightness  0
///   sharpness   the mean of 3x3 pixels with weight 5 in the centre (/13), border pixels themselves
enum class Enhancement : uint8_t { color, contrast, brightness, sharpness };
void enhance(Image& image, Enhancement kind, double factor, Image& scratch);

/// out(x, y) = image(a·(x+½) + b·(y+½) + c, d·(x+½) + e·(y+½) + f); outside the image `fill`. bicubic is the
/// cubic with a = −1, as Pillow's transforms have it (its resize has −½).
void affine(Image& image, const std::array<double, 6>& matrix, Filter filter, Rgb fill, Image& scratch);
/// Counter-clockwise about the centre.
void rotate(Image& image, double degrees, Filter filter, Rgb fill, Image& scratch);

}  // namespace lowbit
