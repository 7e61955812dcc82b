#include "data/image/device_crop.h"

#include "data/image/resize.h"
#include "tensor/core/thread_pool.h"

namespace lowbit {
namespace {

void finish_crops_cpu(const FinishCropsArgs& a, Stream) {
  Normalization n;
  for (int c = 0; c < 3; ++c) n.mean[c] = a.mean[c], n.std[c] = a.deviation[c];
  const int size = int(a.out.shape[2]);
  const auto* const plans = static_cast<const CropPlan*>(a.plans.data);
  parallel_for(a.out.shape[0], 1, [&](int64_t begin, int64_t end) {
    ResizeScratch scratch;
    Image out(size, size);
    for (int64_t i = begin; i < end; ++i) {
      const CropPlan& p = plans[i];
      const ResizeWindow& w = p.window;
      const ImageView pixels{a.bytes.as<uint8_t>() + p.offset, p.height, p.width, p.row};
      resize_window(pixels, w.full_height, w.full_width, w.top, w.left, w.filter, scratch, out);
      if (w.flip_horizontal) flip_horizontal(out);
      if (w.flip_vertical) flip_vertical(out);
      normalize_chw(out, n, a.out.as<float>() + i * 3 * size * size);
    }
  });
}

}  // namespace

KernelSlot<FinishCropsArgs> finish_crops{"finish_crops", finish_crops_cpu};

}  // namespace lowbit
