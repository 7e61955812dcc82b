#pragma once
// Running means and top-k accuracy.

#include <cstdint>
#include <vector>

#include "tensor/core/tensor.h"

namespace lowbit {

/// Mean of values weighted by their counts, and the latest value.
class RunningMean {
 public:
  void add(double value, double count = 1) { last_ = value, sum_ += value * count, count_ += count; }
  double mean() const { return count_ > 0 ? sum_ / count_ : 0; }
  double last() const { return last_; }
  double count() const { return count_; }
  void reset() { *this = {}; }
  /// Everything there is to it, for checkpoints.
  std::vector<double> state() const { return {last_, sum_, count_}; }
  void load(double last, double sum, double count) { last_ = last, sum_ = sum, count_ = count; }

 private:
  double last_ = 0, sum_ = 0, count_ = 0;
};

struct TopCounts {
  int64_t top1 = 0, top5 = 0, total = 0;
  void operator+=(const TopCounts& o) { top1 += o.top1, top5 += o.top5, total += o.total; }
  double percent1() const { return total ? 100.0 * double(top1) / double(total) : 0; }
  double percent5() const { return total ? 100.0 * double(top5) / double(total) : 0; }
};

/// logits f32 [B, C], labels i64 [B]. Of equal logits the one with the smaller index ranks first; a row with
/// a NaN is wrong.
/// Errors  shape, dtype; value: a label outside [0, C)
TopCounts count_correct(const Tensor& logits, const Tensor& labels);

}  // namespace lowbit
