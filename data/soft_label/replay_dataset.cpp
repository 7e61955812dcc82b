#include "data/soft_label/replay_dataset.h"

#include <cmath>

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
  return {{"image", Shape{o_.crops, 3, o_.size, o_.size}, DType::f32},
          {"label", Shape{}, DType::i64},
          {"target", Shape{o_.crops, o_.classes}, DType::f32}};
}

void ReplayDataset::read(int64_t index, const RngKey& key, std::span<const View> out) const {
  struct Scratch {
    std::vector<uint8_t> bytes;
    Image decoded, cut, crop;
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
  const int64_t plane = int64_t(o_.size) * o_.size;
  s.crop.reshape(o_.size, o_.size);
  for (int64_t i = 0; i < o_.crops; ++i) {
    replay_crop(s.decoded.view(), labels.crops[size_t(i)], o_.filter, s.resize, s.cut, s.crop);
    normalize_chw(s.crop, o_.normalization, out[0].as<float>() + i * 3 * plane);
    recover_soft_label(labels, i, o_.classes, name, out[2].as<float>() + i * o_.classes);
  }
  *out[1].as<int64_t>() = list_->labels[size_t(index)];
}

}  // namespace lowbit
