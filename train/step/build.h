#pragma once
// From options to the parts of a run: data sets, model, weights.

#include <memory>
#include <string>
#include <vector>

#include "data/core/loader.h"
#include "data/core/sampler.h"
#include "data/image/batch_augment.h"
#include "nn/models/factory.h"
#include "train/checkpoint/weights.h"
#include "train/config/options.h"

namespace lowbit {

struct DataSets {
  std::shared_ptr<const Dataset> train, val;              ///< train is null when it was not asked for
  std::shared_ptr<const Dataset> train_single;            ///< one crop of each image, where `train` has more
  std::shared_ptr<const Sampler> train_order, val_order;  ///< --limit-train and --limit-val applied
  std::shared_ptr<const BatchAugment> augment;  ///< what the trainer does to whole batches; null: nothing
  int64_t classes = 0;
  int64_t crops = 0;        ///< of stored labels in a visit; 0: labels of classes
  std::string description;  ///< one line for the log
};

/// --model with --image-size, --patch-size, … and the number of classes; 0 keeps the model's own.
ModelPlan model_plan(const Options& o, int64_t classes, int64_t image_size = 0);

/// Opens --data (or --synthetic) with the transforms that the options and the model's input statistics name.
/// `with_train`: the training split too. Errors  usage: neither --data nor --synthetic; io: folders, files
DataSets open_data(const Options& o, const ImageConfig& c, bool with_train);

/// Mixes and erases where `augment` says so, and puts the crops of an image side by side as images: fields
/// become images f32 [N, 3, S, S], labels [N] and, where labels are soft, targets [N, classes].
void prepare_batch(Loader::Batch& b, const BatchAugment* augment, int64_t epoch, Device device);

/// What a weight file says about the model it was saved from: options by name. Files of other programs say
/// nothing; the number of classes then comes from the rows of `head.weight`.
StringMap saved_settings(const WeightFile& file);

/// Gives the options that are not set otherwise the values that the file names, the number of classes only
/// when `classes`. True when it was taken.
bool take_saved_settings(Options& o, const WeightFile& file, bool classes = true);

/// "mean" or "std" of the model's input as text "R,G,B": the option's, else the model's own.
std::string input_statistic(const Options& o, const ImageConfig& c, const std::string& which);

/// Options of the run that a weight file should carry, so that eval needs no more than the file.
StringMap settings_to_save(const Options& o, const ImageConfig& c);

/// Copies weights into the model. Position embeddings of another grid are resized, fused and split q/k/v
/// converted; with `replace_head` a classifier for another number of classes stays at its initialisation. A
/// file without quantizer state fits a quantized model. Every other difference in names or shapes is an
/// Error(io), unless `allow_partial`. Returns lines for the log.
std::vector<std::string> load_into(ImageModel& model, const WeightFile& file, bool replace_head,
                                   bool allow_partial);

}  // namespace lowbit
