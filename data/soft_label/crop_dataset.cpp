#include "data/soft_label/crop_dataset.h"

#include "data/soft_label/replay_dataset.h"
#include "tensor/core/error.h"

namespace lowbit {

namespace {
constexpr uint64_t kDrawsOfCrop = 1 << 8;  // more than ten tries and a flip take
}

CropDataset::CropDataset(ImageList list, const CropOptions& options) : list_(std::move(list)), o_(options) {
  o_.segment = std::min(o_.segment, o_.crops);
  LOWBIT_CHECK(o_.segment > 0 && o_.size > 0, value, "labels", "crops and size must be positive (got ",
               o_.crops, ", ", o_.size, ")");
}

std::vector<Dataset::Field> CropDataset::fields() const {
  return {{"image", Shape{o_.segment, 3, o_.size, o_.size}, DType::f32},
          {"box", Shape{o_.segment, 4}, DType::f32},
          {"flip", Shape{o_.segment}, DType::u8}};
}

void CropDataset::read(int64_t index, const RngKey&, std::span<const View> out) const {
  struct Scratch {
    std::vector<uint8_t> bytes;
    Image decoded, cut, crop;
    ResizeScratch resize;
  };
  thread_local Scratch s;
  const int64_t image = index / segments(), begin = first(index % segments());
  const std::string path = list_.root + "/" + list_.paths[size_t(image)];
  read_file(path, s.bytes);
  decode_image(s.bytes, path, s.decoded, o_.decoder);
  const int height = s.decoded.height(), width = s.decoded.width();
  CropLabels stored;
  if (o_.reference) {
    std::vector<int64_t> which(size_t(o_.segment));
    for (int64_t k = 0; k < o_.segment; ++k) which[size_t(k)] = begin + k;
    stored = o_.reference->read(label_key(path), which);
  }
  s.crop.reshape(o_.size, o_.size);
  for (int64_t k = 0; k < o_.segment; ++k) {
    CropLabels::Crop c;
    if (o_.reference) {
      c = stored.crops[size_t(k)];
    } else {
      RngKey key = crop_key(o_.seed, image);
      key.offset = uint64_t(begin + k) * kDrawsOfCrop;
      PhiloxDraws draws(key);
      const Box b = random_resized_crop(height, width, o_.scale, o_.ratio, draws);
      c = {float(double(b.top) / height), float(double(b.left) / width), float(double(b.height) / height),
           float(double(b.width) / width), draws.chance(o_.flip)};
    }
    replay_crop(s.decoded.view(), c, o_.filter, s.resize, s.cut, s.crop);
    normalize_chw(s.crop, o_.normalization, out[0].as<float>() + k * 3 * o_.size * o_.size);
    float* box = out[1].as<float>() + 4 * k;
    box[0] = c.top, box[1] = c.left, box[2] = c.height, box[3] = c.width;
    out[2].as<uint8_t>()[k] = c.flip;
  }
}

}  // namespace lowbit
