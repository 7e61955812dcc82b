#include "train/schedule/epoch_plan.h"

#include <cmath>
#include <numbers>

namespace lowbit {

double bin_regulariser_weight(double epoch, double epochs) {
  const double start = 0.25 * epochs;
  if (epoch < start) return 0;
  return 0.01 - 0.005 * (1 + std::cos(std::numbers::pi * (epoch - start) / (epochs - start)));
}

std::vector<EpochCall> epoch_plan(const EpochPlanOptions& o, const Schedule& schedule) {
  std::vector<EpochCall> plan;
  const auto add = [&](int64_t e, int crops, double lr) {
    plan.push_back({e, crops, lr, bin_regulariser_weight(double(e), double(o.epochs))});
  };
  int64_t first = 0, warmup = o.warmup;
  if (o.resume_epoch >= 0) {
    first = o.resume_epoch;
    // A checkpoint of a multi-crop pass stores e + 1; the next pass is e + crops.
    if (first > warmup) first += o.crops - 1, warmup = 0;
  }
  int64_t e = first;
  for (; e < warmup; ++e) add(e, 1, schedule.lr(double(e)));
  for (; e < o.epochs; e += o.crops) {
    if (e >= o.epochs - o.crops) {
      for (int64_t f = e; f < o.epochs; ++f) add(f, 1, schedule.lr(double(f + 1)));
      break;
    }
    add(e, o.crops, schedule.lr(double(e)));
  }
  return plan;
}

}  // namespace lowbit
