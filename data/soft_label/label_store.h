#pragma once
// Where the soft labels of a data set come from: a tree of FKD's files, or one packed file.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "data/soft_label/pack_format.h"

namespace lowbit {

/// Labels by image. The key of an image is "<class folder>/<file name up to its first dot>".
class LabelStore {
 public:
  virtual ~LabelStore() = default;
  virtual SoftLabelType type() const = 0;
  virtual int64_t ids_each() const = 0;
  /// Labelled crops of an image. Errors  io: no labels for it
  virtual int64_t crops(const std::string& key) const = 0;
  /// Those of the numbers `which`, in their order. Called by several threads at once. Errors  io: no labels
  /// for the image, damage
  virtual CropLabels read(const std::string& key, const std::vector<int64_t>& which) const = 0;
};

/// Key of an image path.
std::string label_key(const std::string& image_path);

/// A packed file, or a folder with files <…>/<class>/<stem>.tar (at any depth, as the generator wrote it:
/// "imagenet/ train/<class>/<stem>.tar" below the folder that the published trainers are given).
std::unique_ptr<LabelStore> open_labels(const std::string& path);

/// The label files below a folder, as key and path, in byte order of the keys. Errors  io: none; two for one
/// key
std::vector<std::pair<std::string, std::string>> label_files(const std::string& folder);

/// What `labels info` prints.
struct LabelSummary {
  SoftLabelType type = SoftLabelType::hard;
  int64_t ids_each = 0, images = 0, crops = 0, least_crops = 0, most_crops = 0, bytes = 0;
  int32_t highest_class = 0;
};

/// Writes every label file below `folder` into one file at `out`; values are kept exactly, in half precision
/// where all of a file set are. `progress(done, all)` is called now and then. Errors  io, naming the file
LabelSummary pack_labels(const std::string& folder, const std::string& out,
                         const std::function<void(int64_t, int64_t)>& progress);

/// Form of the packed file (all little endian):
///   "lowbit labels 1\n", then for every crop of every image one record of equal size
///     coordinates 4 x f32 or f16, flip u8, ids u16 (u32 beyond 65536 classes) x ids_each,
///     probabilities f32 or f16 x probabilities_each, CRC-32 of the record's bytes before it
///   index: for every image key length u16, key, first record u64, crops u32
///   footer: JSON header, its length u64, index offset u64, index length u64, CRC-32 of index and JSON u32,
///   magic
/// A reader touches the index once and then only the records it is asked for. Files are read, not mapped, so
/// that one that is cut off while in use gives an error.
class PackWriter {
 public:
  PackWriter(const std::string& path, const pack::Layout& layout);
  ~PackWriter();
  void add(const std::string& key, const CropLabels& labels);
  void finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Reads and checks everything, of a packed file or of a folder. Errors  io at the first damage
LabelSummary verify_labels(const std::string& path);

}  // namespace lowbit
