#pragma once
#include "data/core/dataset.h"

namespace lowbit {

/// Images without files, for `--synthetic`, benchmarks and tests: every class is a coarse grid of colours, an
/// image is its class's grid plus noise, so a model can learn it. label = index mod classes. Fields as of
/// ImageDataset: "image" f32 [3, size, size] of roughly unit variance, "label" i64 [].
class SyntheticDataset final : public Dataset {
 public:
  struct Options {
    int64_t samples = 1024, classes = 10;
    int size = 224;
    uint64_t seed = 0;
    int64_t first = 0;   ///< number of the first image: a validation set begins where the training set ends
    float noise = 1.0f;  ///< amplitude; the grid's is 1
  };
  explicit SyntheticDataset(const Options& o);
  int64_t size() const override { return o_.samples; }
  std::vector<Field> fields() const override;
  /// The key is not used: an image is the same in every epoch.
  void read(int64_t index, const RngKey& key, std::span<const View> out) const override;

 private:
  Options o_;
};

}  // namespace lowbit
