#pragma once
// Training images with stored crops and soft labels (FKD's multi-crop replay).

#include <memory>

#include "data/image/image_folder.h"
#include "data/soft_label/label_store.h"

namespace lowbit {

struct ReplayOptions {
  int64_t crops = 4;  ///< of an image in one visit
  int size = 224;
  Filter filter = Filter::bilinear;  ///< the published trainers', although labels were made with bicubic
  Normalization normalization;
  int64_t classes = 1000;
  /// marginal_renorm for stored marginal labels; otherwise as stored.
  bool renormalize = false;
  Decoder decoder = Decoder::auto_;
  bool decoded =
      false;  ///< leave the decoded image in the batch's bytes, once for all crops; finish() cuts them
};

/// Integer box of stored shares, right and bottom rounded by themselves: half to even of left·W, top·H,
/// (left + width)·W, (top + height)·H in double.
Box replayed_box(const CropLabels::Crop& c, int height, int width);

/// The crop of an image: pixels outside it are 0, resized to size x size, flipped if the label says so.
void replay_crop(const ImageView& image, const CropLabels::Crop& c, Filter filter, ResizeScratch& scratch,
                 Image& cut, Image& out);

/// Fields: "image" f32 [crops, 3, size, size], "label" i64 [], "target" f32 [crops, classes]. One decode for
/// all crops of a visit. Which of the stored crops: the first of a random permutation of them, a function of
/// the key.
class ReplayDataset final : public Dataset {
 public:
  ReplayDataset(ImageList list, std::shared_ptr<const LabelStore> labels, const ReplayOptions& options);
  /// The same images and labels with another number of crops.
  std::shared_ptr<const ReplayDataset> with_crops(int64_t crops) const;
  int64_t crops() const { return o_.crops; }
  int64_t size() const override { return list_->size(); }
  std::vector<Field> fields() const override;
  void read(int64_t index, const RngKey& key, std::span<const View> out) const override;
  BlobSize blob_size() const override;
  void read_with_bytes(int64_t index, const RngKey& key, std::span<const View> out,
                       Blob& blob) const override;
  void finish(std::vector<Tensor>& fields, const Tensor& bytes) const override;

 private:
  void read_into(int64_t index, const RngKey& key, std::span<const View> out, Blob* blob) const;
  bool leave_crops(const ImageView& image, const CropLabels& labels, Blob& blob,
                   std::span<CropPlan> plans) const;
  std::shared_ptr<const ImageList> list_;
  std::shared_ptr<const LabelStore> labels_;
  ReplayOptions o_;
};

}  // namespace lowbit
