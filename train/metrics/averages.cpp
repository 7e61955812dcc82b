#include "train/metrics/averages.h"

#include <cmath>

namespace lowbit {

TopCounts count_correct(const Tensor& logits, const Tensor& labels) {
  LOWBIT_CHECK(logits.ndim() == 2 && labels.ndim() == 1 && logits.size(0) == labels.size(0), shape, "top-k",
               "logits must be [B, C] and labels [B] (got ", logits.str(), ", ", labels.str(), ")");
  const Tensor packed = logits.to(Device{}).packed(), targets = labels.to(Device{}).packed();
  const float* x = packed.data_const<float>();
  const int64_t* y = targets.data_const<int64_t>();
  const int64_t rows = logits.size(0), classes = logits.size(1);
  TopCounts counts;
  for (int64_t b = 0; b < rows; ++b, x += classes) {
    LOWBIT_CHECK(y[b] >= 0 && y[b] < classes, value, "top-k", "labels must be below ", classes, " (got ",
                 y[b], ")");
    const float t = x[y[b]];
    int64_t better = 0;
    bool nan = false;
    for (int64_t c = 0; c < classes; ++c) {
      better += x[c] > t || (x[c] == t && c < y[b]);
      nan = nan || std::isnan(x[c]);
    }
    if (!nan) counts.top1 += better < 1, counts.top5 += better < 5;
  }
  counts.total = rows;
  return counts;
}

}  // namespace lowbit
