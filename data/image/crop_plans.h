#pragma once
// How data sets leave pixels for finish_crops(). Included by .cpp files of data sets only.

#include <span>

#include "data/core/dataset.h"
#include "data/image/device_crop.h"
#include "data/image/resize.h"

namespace lowbit {

/// The field "image" of the decoded form: a CropPlan for each crop.
Dataset::Field crop_plan_field(int64_t crops);
/// At least the pixels of the finished crops, so that a sample can always fall back to them; there is room
/// for four times those of one crop.
Dataset::BlobSize crop_blob_size(int size, int64_t crops);

/// Copies the pixels and describes them; false where there is no room.
bool leave_pixels(const ImageView& pixels, const ResizeWindow& window, Blob& blob, CropPlan& plan);
/// Crops of the final size, to be normalised only. Always finds room.
void leave_finished(std::span<const Image> crops, Blob& blob, std::span<CropPlan> plans);

/// f32 [n, crops, 3, size, size] on the device of the plans, a field of crop_plan_field(), and bytes.
Tensor finished_crops(const Tensor& plans, const Tensor& bytes, int64_t crops, int size,
                      const Normalization& n);

}  // namespace lowbit
