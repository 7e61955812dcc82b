#pragma once
// Where generated soft labels go, image by image: a tree of FKD's files, or one packed file. Both can be left
// at any moment and continued.

#include <memory>
#include <string>

#include "data/soft_label/pack_format.h"

namespace lowbit {

class LabelWriter {
 public:
  virtual ~LabelWriter() = default;
  /// The labels of this image are already there.
  virtual bool has(const std::string& image_path) const = 0;
  virtual void add(const std::string& image_path, const CropLabels& labels) = 0;
  virtual void finish() = 0;
};

/// One file of FKD's generator: torch.save([coordinates f32 [M, 4], flips bool [M], labels]) of NumPy arrays,
/// the floats in half precision with `half`. Atomic.
void write_label_file(const std::string& path, const CropLabels& labels, bool half);

/// <folder>/<last three folders of the image>/<its name up to the first dot>.tar, as the published readers
/// look for it. `settings` (one line of text) is kept in <folder>/generator.json.
/// Errors  io: the folder was begun with other settings
std::unique_ptr<LabelWriter> folder_writer(const std::string& folder, const pack::Layout& layout,
                                           const std::string& settings);

/// <path>.partial holds the beginning of the file, <path>.partial.index the settings and, for every image
/// that is complete, its entry with a CRC-32; finish() renames the first and removes the second.
/// Errors  io: begun with other settings; run: disk
std::unique_ptr<LabelWriter> pack_writer(const std::string& path, const pack::Layout& layout,
                                         const std::string& settings);

}  // namespace lowbit
