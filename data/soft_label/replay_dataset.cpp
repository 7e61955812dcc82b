#include "data/soft_label/replay_dataset.h"

#include <cmath>

#include "data/image/crop_plans.h"
#include "tensor/core/error.h"

namespace lowbit {

Box replayed_box(const CropLabels::Crop& c, int height, int width) {
  const double i = double(c.top) * height, j = double(c.left) * width;
  const double h = double(c.height) * height, w = double(c.width) * width;
  const int top = int(std::nearbyint(i)), left = int(std::nearbyint(j));
  return {top, left, int(std::nearbyint(i + h)) - top, int(std::nearbyint(j + w)) - left};
}

void replay_crop(const ImageView& image, const CropLabels::Crop& c, Filter filter, ResizeScratch& scratch,
                 Image& cut, Image& out) {
  const Box b = replayed_box(c, image.height, image.width);
  LOWBIT_CHECK(b.height > 0 && b.width > 0, io, "labels", "a stored crop is empty (", b.width, " x ",
               b.height, " pixels of an image of ", image.width, " x ", image.height, ")");
  if (b.top >= 0 && b.left >= 0 && b.top + b.height <= image.height && b.left + b.width <= image.width) {
    resize(image.crop(b.top, b.left, b.height, b.width), filter, scratch, out);
  } else {
    cut.reshape(b.height, b.width);
    crop_zero_padded(image, b.top, b.left, cut);
    resize(cut.view(), filter, scratch, out);
  }
  if (c.flip) flip_horizontal(out);
}

ReplayDataset::ReplayDataset(ImageList list, std::shared_ptr<const LabelStore> labels,
                             const ReplayOptions& options)
    : list_(std::make_shared<ImageList>(std::move(list))), labels_(std::move(labels)), o_(options) {
  LOWBIT_CHECK(o_.crops > 0 && o_.size > 0 && o_.classes > 0, value, "labels",
               "crops, size and classes must be positive (got ", o_.crops, ", ", o_.size, ", ", o_.classes,
               ")");
}

std::shared_ptr<const ReplayDataset> ReplayDataset::with_crops(int64_t crops) const {
  auto other = std::make_shared<ReplayDataset>(*this);
  other->o_.crops = crops;
  return other;
}

std::vector<Dataset::Field> ReplayDataset::fields() const {
  return {o_.decoded ? crop_plan_field(o_.crops)
                     : Field{"image", Shape{o_.crops, 3, o_.size, o_.size}, DType::f32},
          {"label", Shape{}, DType::i64},
          {"target", Shape{o_.crops, o_.classes}, DType::f32}};
}

Dataset::BlobSize ReplayDataset::blob_size() const {
  return o_.decoded ? crop_blob_size(o_.size, o_.crops) : BlobSize{};
}

void ReplayDataset::finish(std::vector<Tensor>& fields, const Tensor& bytes) const {
  fields[0] = finished_crops(fields[0], bytes, o_.crops, o_.size, o_.normalization);
}

void ReplayDataset::read(int64_t index, const RngKey& key, std::span<const View> out) const {
  LOWBIT_ASSERT(!o_.decoded);
  read_into(index, key, out, nullptr);
}

void ReplayDataset::read_with_bytes(int64_t index, const RngKey& key, std::span<const View> out,
                                    Blob& blob) const {
  read_into(index, key, out, &blob);
}

/// The boxes of all crops as windows on the part of the image that holds them, where the kernels can do that.
bool ReplayDataset::leave_crops(const ImageView& image, const CropLabels& labels, Blob& blob,
                                std::span<CropPlan> plans) const {
  std::vector<Box> boxes;
  for (const CropLabels::Crop& c : labels.crops) {
    const Box b = replayed_box(c, image.height, image.width);
    if (b.height <= 0 || b.width <= 0 || b.top < 0 || b.left < 0 || b.top + b.height > image.height ||
        b.left + b.width > image.width || !device_crop_fits(b.height, b.width, o_.size, o_.size))
      return false;
    boxes.push_back(b);
  }
  CropPlan whole;
  if (!leave_pixels(image, {}, blob, whole)) return false;
  for (size_t i = 0; i < boxes.size(); ++i) {
    const Box& b = boxes[i];
    plans[i] = {whole.offset + (int64_t(b.top) * image.width + b.left) * 3,
                whole.row,
                b.height,
                b.width,
                {o_.size, o_.size, 0, 0, o_.filter, labels.crops[i].flip, false}};
  }
  return true;
}

void ReplayDataset::read_into(int64_t index, const RngKey& key, std::span<const View> out, Blob* blob) const {
  struct Scratch {
    std::vector<uint8_t> bytes;
    Image decoded, cut;
    std::vector<Image> crops;
    ResizeScratch resize;
  };
  thread_local Scratch s;
  const std::string path = list_->root + "/" + list_->paths[size_t(index)], name = label_key(path);
  const int64_t stored = labels_->crops(name);
  LOWBIT_CHECK(stored >= o_.crops, io, "labels", name, " has ", stored, " labelled crops, ", o_.crops,
               " are needed (--crops)");
  std::vector<int64_t> which = permutation(stored, key);
  which.resize(size_t(o_.crops));
  CropLabels labels = labels_->read(name, which);
  if (o_.renormalize && labels.type == SoftLabelType::marginal) labels.type = SoftLabelType::marginal_renorm;
  read_file(path, s.bytes);
  decode_image(s.bytes, path, s.decoded, o_.decoder);
  *out[1].as<int64_t>() = list_->labels[size_t(index)];
  for (int64_t i = 0; i < o_.crops; ++i)
    recover_soft_label(labels, i, o_.classes, name, out[2].as<float>() + i * o_.classes);
  const std::span<CropPlan> plans(out[0].as<CropPlan>(), blob ? size_t(o_.crops) : 0);
  if (blob && leave_crops(s.decoded.view(), labels, *blob, plans)) return;
  const int64_t plane = int64_t(o_.size) * o_.size;
  s.crops.resize(blob ? size_t(o_.crops) : 1);
  for (int64_t i = 0; i < o_.crops; ++i) {
    Image& crop = s.crops[blob ? size_t(i) : 0];
    crop.reshape(o_.size, o_.size);
    replay_crop(s.decoded.view(), labels.crops[size_t(i)], o_.filter, s.resize, s.cut, crop);
    if (!blob) normalize_chw(crop, o_.normalization, out[0].as<float>() + i * 3 * plane);
  }
  if (blob) leave_finished(s.crops, *blob, plans);
}

}  // namespace lowbit
