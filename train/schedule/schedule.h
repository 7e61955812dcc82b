#pragma once
// Learning-rate schedules, pure functions of time (plateau excepted: it remembers the metrics it was told).
//   t  time in epochs: the epoch's index, or with fractions when the rate changes every step
//   warm-up, t < warmup:  warmup_lr + t·(start − warmup_lr)/warmup, start = the curve's value at its entry;
//                         with `warmup_scales` instead the curve times min(1, (t + interval)/warmup)
//   cosine     min + ½(lr·g^i − min)(1 + cos(π c/T))      in cycle i, c epochs into it, T its length
//   tanh       min + ½(lr·g^i − min)(1 − tanh(−7(1 − c/T) + 3c/T))
//   poly       min + (lr·g^i − min)(1 − c/T)^rate
//   step       lr·rate^⌊t/decay_interval⌋          multistep  lr·rate^(number of milestones ≤ t + 1)
//   plateau    lr·rate after more than `patience` epochs without improvement by 1e-4 (relative)
//   constant   lr
// The warm-up is not subtracted from t: the curve is entered at t = warmup. After the last cycle: min_lr.
// Source: timm 0.5.4 scheduler/; with one cycle equal to the schedule of VVTQ (timm 0.3.2) and OFQ.

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace lowbit {

struct ScheduleOptions {
  std::string kind = "cosine";
  double lr = 5e-4, min_lr = 1e-5;
  double total = 100;  ///< T of the first cycle, epochs
  double warmup = 0, warmup_lr = 1e-6;
  bool warmup_scales = false;
  double interval = 1;  ///< epochs between two values; for warmup_scales
  double cooldown = 0;  ///< epochs after the last cycle
  double cycle_mul = 1, cycle_decay = 0.1;
  int cycle_limit = 1;
  double decay_interval = 30, decay_rate = 0.1;
  std::vector<double> milestones;
  int patience = 10;
  bool higher_is_better = true;  ///< of the metric that plateau watches
  double noise_from = std::numeric_limits<double>::infinity(), noise_to = noise_from;  ///< epochs
  double noise_bound = 0.67;
  uint64_t noise_seed = 42;
};

class Schedule {
 public:
  /// Throws Error(usage) for an unknown kind.
  explicit Schedule(ScheduleOptions o);
  double lr(double t) const;
  /// Epochs of a whole run: all cycles plus the cool-down; without cycles `total`.
  double run_length() const;
  /// Plateau only (a no-op otherwise): the metric after the epoch that ends at t.
  void report(double t, double metric);
  /// What plateau remembers, for checkpoints: {lr, best, bad epochs}.
  std::vector<double> state() const { return {plateau_lr_, best_, double(bad_)}; }
  void load(const std::vector<double>& state);
  const ScheduleOptions& options() const { return o_; }

 private:
  double curve(double t) const;
  double base(double t) const;
  ScheduleOptions o_;
  double plateau_lr_, best_;
  int64_t bad_ = 0;
};

/// Standard normal, redrawn until |z| < bound, from the Mersenne Twister seeded with `seed`: the numbers of
/// torch.randn(1) on the CPU, so that published noisy schedules can be repeated.
double bounded_normal(uint64_t seed, double bound);

}  // namespace lowbit
