#include "data/image/crop_plans.h"

#include <algorithm>
#include <cstring>

namespace lowbit {

namespace {
int64_t bytes_of_crop(int64_t size) { return size * size * 3; }

void copy_rows(const ImageView& pixels, uint8_t* to) {
  const size_t row = size_t(pixels.width) * 3;
  for (int y = 0; y < pixels.height; ++y) std::memcpy(to + size_t(y) * row, pixels.row(y), row);
}
}  // namespace

Dataset::Field crop_plan_field(int64_t crops) {
  return {"image", Shape{crops * int64_t(sizeof(CropPlan))}, DType::u8};
}

Dataset::BlobSize crop_blob_size(int size, int64_t crops) {
  return {crops * bytes_of_crop(size), std::max<int64_t>(4, crops) * bytes_of_crop(size)};
}

bool leave_pixels(const ImageView& pixels, const ResizeWindow& window, Blob& blob, CropPlan& plan) {
  const int64_t row = int64_t(pixels.width) * 3;
  int64_t offset = 0;
  uint8_t* const to = blob.take(pixels.height * row, offset);
  if (!to) return false;
  copy_rows(pixels, to);
  plan = {offset, row, pixels.height, pixels.width, window};
  return true;
}

void leave_finished(std::span<const Image> crops, Blob& blob, std::span<CropPlan> plans) {
  const int size = crops[0].height();
  const int64_t each = bytes_of_crop(size);
  int64_t offset = 0;
  uint8_t* const to = blob.take(int64_t(crops.size()) * each, offset);
  LOWBIT_ASSERT(to);
  for (size_t i = 0; i < crops.size(); ++i) {
    const int64_t at = int64_t(i) * each;
    copy_rows(crops[i].view(), to + at);
    plans[i] = {
        offset + at, int64_t(size) * 3, size, size, {size, size, 0, 0, Filter::bilinear, false, false}};
  }
}

Tensor finished_crops(const Tensor& plans, const Tensor& bytes, int64_t crops, int size,
                      const Normalization& n) {
  Tensor out = Tensor::empty({plans.size(0), crops, 3, size, size}, DType::f32, plans.device());
  Tensor flat = out.reshape({plans.size(0) * crops, 3, size, size});
  FinishCropsArgs a{flat.mutable_view(), plans.view(), bytes.view(), {}, {}};
  for (int c = 0; c < 3; ++c) a.mean[c] = n.mean[c], a.deviation[c] = n.std[c];
  finish_crops(a, out.device());
  return out;
}

}  // namespace lowbit
