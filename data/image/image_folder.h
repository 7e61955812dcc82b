#pragma once
// Folders of photographs as users bring them, and the data set over them.

#include <cstdint>
#include <string>
#include <vector>

#include "data/core/dataset.h"
#include "data/image/decode.h"
#include "data/image/transforms.h"

namespace lowbit {

/// Images and their class ids. Paths are relative to `root`.
struct ImageList {
  std::string root;
  std::vector<std::string> paths;
  std::vector<int64_t> labels;
  std::vector<std::string> class_names;  ///< by class id; its length is the number of classes
  int64_t ignored = 0;                   ///< entries of class folders that are not images by their names

  int64_t size() const { return int64_t(paths.size()); }
  int64_t classes() const { return int64_t(class_names.size()); }
};

/// One split ("train", "val") of a data folder:
///   <root>/<split>/<class>/<image>             one folder for each class; classes and files in byte order
///   <root>/<split>/<image> and <root>/<split>_labels.tsv   flat, with lines path<TAB>class id
/// A class id is the line in <root>/class_index.tsv (id, wnid, names) where that file exists, else the rank
/// of the folder among those of `train` (of the split itself when there is no train), so that a split that
/// lacks classes keeps the ids. Names that begin with a dot are ignored; symbolic links are followed. Errors
/// io: missing folder, no class folders, empty class folder, unknown class, unsupported image format
ImageList open_image_split(const std::string& root, const std::string& split);

/// Images named by a text file, in its order: path<TAB>class id a line, or the path alone if its folder names
/// the class. Paths are relative to `root`. Class names come from <root> as for open_image_split, else they
/// are the ids. Errors  io, with the line number
ImageList read_image_list(const std::string& root, const std::string& list_file);

/// Fields: "image" f32 [3, size, size], normalised (u8 for `pixels`, which a BatchAugment finishes), and
/// "label" i64 []. One decode for each sample. `decoded` leaves the decoded part in the batch's bytes where
/// the rest of the transform is a ResizeWindow, and the pixels after it otherwise; the image is made by
/// finish().
class ImageDataset final : public Dataset {
 public:
  enum class Form : uint8_t { normalized, pixels, decoded };
  ImageDataset(ImageList list, const TransformOptions& transform, Decoder decoder = Decoder::auto_,
               Form form = Form::normalized)
      : list_(std::move(list)), transform_(transform), decoder_(decoder), form_(form) {}
  int64_t size() const override { return list_.size(); }
  std::vector<Field> fields() const override;
  void read(int64_t index, const RngKey& key, std::span<const View> out) const override;
  BlobSize blob_size() const override;
  void read_with_bytes(int64_t index, const RngKey& key, std::span<const View> out,
                       Blob& blob) const override;
  void finish(std::vector<Tensor>& fields, const Tensor& bytes) const override;
  const ImageList& list() const { return list_; }

 private:
  void read_into(int64_t index, const RngKey& key, std::span<const View> out, Blob* blob) const;
  ImageList list_;
  ImageTransform transform_;
  Decoder decoder_;
  Form form_;
};

}  // namespace lowbit
