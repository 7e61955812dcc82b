#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "data/core/dataset.h"
#include "data/core/sampler.h"

namespace lowbit {

struct LoaderOptions {
  int64_t batch = 128;
  int workers = 2;  ///< threads; 0 reads in the caller's thread
  int slots = 4;    ///< batches in memory, the one in use included
  uint64_t seed = 0;
  bool drop_last = true;  ///< false: the last batch of an epoch may be short
  Device device = {};     ///< where next() leaves the batch
  /// Of every `group` consecutive batches this loader hands out `count`, from number `first` on: what one of
  /// several processes reads.
  struct Share {
    int64_t group = 1, first = 0, count = 1;
  } share = {};
};

/// Batches of a data set in the order of a sampler, read ahead by worker threads into a ring of preallocated
/// slots. Every byte is a function of (seed, epoch, index) alone; the number of workers, their timing and the
/// batch at which an epoch was entered do not show.
class Loader {
 public:
  Loader(std::shared_ptr<const Dataset> dataset, std::shared_ptr<const Sampler> sampler,
         const LoaderOptions& options);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  int64_t batches() const;  ///< of an epoch, of all shares together
  const Dataset& dataset() const;
  const LoaderOptions& options() const;

  /// Begins an epoch at one of its batches, or the first after it in the share; whatever was under way is
  /// abandoned. Batches handed out before become invalid. Errors  value: first_batch beyond the end; a
  /// sampler that names a sample that does not exist
  void start(int64_t epoch, int64_t first_batch = 0);

  struct Batch {
    std::vector<Tensor>
        fields;         ///< in the order of Dataset::fields(), [n, …]; valid until the following next()
    int64_t index = 0;  ///< number in the epoch
    int64_t size = 0;   ///< n: `batch`, or less for a short last one
  };
  /// The next batch; nothing at the end of the epoch. An error of Dataset::read appears here, for the batch
  /// it belongs to and, if it has several, the first of them; the epoch is over then.
  std::optional<Batch> next();

  struct Stats {
    double wait_seconds = 0;  ///< time spent inside next()
    int64_t batches = 0, samples = 0;
  };
  const Stats& stats() const;  ///< since construction

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lowbit
