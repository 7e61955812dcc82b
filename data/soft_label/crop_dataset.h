#pragma once
// The crops that a teacher is to label.

#include <memory>

#include "data/image/image_folder.h"
#include "data/soft_label/label_store.h"

namespace lowbit {

struct CropOptions {
  int64_t crops = 500, segment = 50;  ///< of an image; of one pass of the teacher
  int size = 224;
  double scale[2] = {0.08, 0.936}, ratio[2] = {3.0 / 4, 4.0 / 3}, flip = 0.5;
  Filter filter = Filter::bicubic;
  Normalization normalization;
  uint64_t seed = 0;
  std::shared_ptr<const LabelStore> reference;  ///< boxes and flips of labels that exist; null: drawn
  Decoder decoder = Decoder::auto_;
};

/// Sample i is a segment of an image's crops: number i mod segments() of image i / segments(). The last
/// segment reaches back where the crops do not divide. A crop is a function of (seed, image, its number)
/// alone. Fields: "image" f32 [segment, 3, size, size], "box" f32 [segment, 4] (top/H, left/W, height/H,
/// width/W), "flip" u8 [segment]. Source: FKD_SLG/generate_soft_label.py
class CropDataset final : public Dataset {
 public:
  CropDataset(ImageList list, const CropOptions& options);
  int64_t segments() const { return (o_.crops + o_.segment - 1) / o_.segment; }
  /// Number of the first crop of a segment.
  int64_t first(int64_t segment) const { return std::min(segment * o_.segment, o_.crops - o_.segment); }
  int64_t size() const override { return list_.size() * segments(); }
  std::vector<Field> fields() const override;
  /// The loader's key is not used.
  void read(int64_t index, const RngKey& key, std::span<const View> out) const override;

 private:
  ImageList list_;
  CropOptions o_;
};

}  // namespace lowbit
