#pragma once
// A teacher writes soft labels: `lowbit labels gen`.

#include <functional>

#include "data/soft_label/crop_dataset.h"
#include "data/soft_label/label_writer.h"
#include "nn/models/image_model.h"

namespace lowbit {

struct GenerateOptions {
  CropOptions crops;
  SoftLabelType type = SoftLabelType::marginal;
  int64_t k = 5;  ///< of the marginal types
  double temperature = 1;
  bool half = false;  ///< coordinates and probabilities in half precision
  int workers = 2;
  /// Published: crops beyond the last whole segment get no label, and half precision needs several segments.
  bool published = false;
};

struct GenerateProgress {
  int64_t images = 0, done = 0;  ///< to be labelled in this call; finished
  double seconds = 0;
};

/// Form of the records of these labels by a model of `classes`. Errors  usage: k beyond the classes, class
/// ids that half precision cannot hold in FKD's files
pack::Layout label_layout(const GenerateOptions& o, int64_t classes);

/// Labels every image that `out` lacks, p = softmax(logits / temperature), crop by crop, and finishes `out`.
/// The labels depend on seed, image and crop, not on segments, workers or interruptions. `progress` is called
/// after each image; false stops, and a later call continues. False: stopped.
bool generate_labels(ImageModel& teacher, const ImageList& list, const GenerateOptions& o, LabelWriter& out,
                     const std::function<bool(const GenerateProgress&)>& progress);

}  // namespace lowbit
