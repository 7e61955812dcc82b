#include "train/schedule/epoch_plan.h"

#include <cmath>
#include <numbers>

namespace lowbit {

double bin_regulariser_weight(double epoch, double epochs) {
  const double start = 0.25 * epochs;
  if (epoch < start) return 0;
  return 0.01 - 0.005 * (1 + std::cos(std::numbers::pi * (epoch - start) / (epochs - start)));
}

EpochCall epoch_call(const EpochPlanOptions& o, const Schedule& schedule, int64_t epoch) {
  const bool warming = epoch < o.warmup, last = epoch >= o.epochs - o.crops;
  EpochCall c{epoch, warming || last ? 1 : o.crops, double(!warming && last ? epoch + 1 : epoch), 0,
              bin_regulariser_weight(double(epoch), double(o.epochs))};
  c.lr = schedule.lr(c.time);
  return c;
}

std::vector<EpochCall> epoch_plan(const EpochPlanOptions& o, const Schedule& schedule) {
  EpochPlanOptions rest = o;
  int64_t e = 0;
  if (o.resume_epoch >= 0) {
    e = o.resume_epoch;
    // A checkpoint of a multi-crop pass stores e + 1; the next pass is e + crops.
    if (e > o.warmup) e += o.crops - 1, rest.warmup = 0;
  }
  std::vector<EpochCall> plan;
  for (; e < o.epochs; e += plan.back().crops) plan.push_back(epoch_call(rest, schedule, e));
  return plan;
}

}  // namespace lowbit
