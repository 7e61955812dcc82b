#include "data/image/batch_augment.h"

#include "tensor/core/error.h"
#include "tensor/core/thread_pool.h"

namespace lowbit {

BatchAugment::Result BatchAugment::operator()(Tensor images, const Tensor& labels, int64_t epoch,
                                              int64_t batch) const {
  LOWBIT_CHECK(images.ndim() == 4 && images.size(1) == 3 && images.dtype() == DType::u8, shape,
               "batch_augment", "images must be u8 [B, 3, H, W] (got ", images.shape().str(), ")");
  Result r;
  const int64_t n = images.size(0), height = images.size(2), width = images.size(3), plane = height * width;
  std::vector<Mix> plan(static_cast<size_t>(n));
  if (o_.mixup.on() && (o_.mixup_off_epoch == 0 || epoch < o_.mixup_off_epoch)) {
    PhiloxDraws draws(batch_key(o_.seed, epoch, batch));
    plan = plan_mixup(o_.mixup, n, int(height), int(width), draws);
    apply_mixup(plan, images);
    r.targets = mixup_targets(plan, labels, o_.classes, o_.smoothing);
  }
  const int64_t kept = o_.mixup.on() && o_.mixup.mode == MixupOptions::Mode::half ? n / 2 : n;
  if (r.targets.defined()) r.targets = r.targets.slice(0, 0, kept);
  r.images = Tensor::empty({kept, 3, height, width});
  const uint8_t* from = images.data_const<uint8_t>();
  float* to = r.images.data<float>();
  parallel_for(kept, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t c = 0; c < 3; ++c)
        normalize_plane(from + (i * 3 + c) * plane, plane, o_.normalization, int(c),
                        to + (i * 3 + c) * plane);
      const RngKey key = erasing_key(o_.seed, epoch, batch * n + i);
      PhiloxDraws draws(key);
      const RngKey noise{key.seed, key.stream, uint64_t(1) << 32, nullptr};  // beyond the draws
      random_erasing(o_.erasing, draws, noise, 3, int(height), int(width), to + i * 3 * plane);
    }
  });
  return r;
}

}  // namespace lowbit
