#include "train/schedule/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <random>

#include "tensor/core/error.h"

namespace lowbit {
namespace {

struct Cycle {
  int index;
  double at, length;  ///< epochs into the cycle, epochs of the cycle
};

Cycle cycle_at(double t, const ScheduleOptions& o) {
  if (o.cycle_mul == 1) {
    const double i = std::floor(t / o.total);
    return {int(i), t - o.total * i, o.total};
  }
  const double mul = o.cycle_mul;
  const double i = std::floor(std::log(1 - t / o.total * (1 - mul)) / std::log(mul));
  const double power = std::pow(mul, i);
  return {int(i), t - (1 - power) / (1 - mul) * o.total, power * o.total};
}

}  // namespace

double bounded_normal(uint64_t seed, double bound) {
  std::mt19937 engine{uint32_t(seed)};
  const auto uniform = [&engine] {
    const uint64_t high = engine(), low = engine();
    return double((high << 32 | low) & ((uint64_t(1) << 53) - 1)) * 0x1p-53;
  };
  for (;;) {  // Box–Muller; both values of a pair are used
    const double u1 = uniform(), u2 = uniform();
    const double r = std::sqrt(-2 * std::log1p(-u2)), theta = 2 * std::numbers::pi * u1;
    for (double z : {r * std::cos(theta), r * std::sin(theta)})
      if (std::fabs(z) < bound) return z;
  }
}

Schedule::Schedule(ScheduleOptions o)
    : o_(std::move(o)),
      plateau_lr_(o_.lr),
      best_(o_.higher_is_better ? -std::numeric_limits<double>::infinity()
                                : std::numeric_limits<double>::infinity()) {
  constexpr const char* kinds[] = {"cosine", "step", "multistep", "poly", "tanh", "plateau", "constant"};
  LOWBIT_CHECK(std::find(std::begin(kinds), std::end(kinds), o_.kind) != std::end(kinds), usage, "schedule",
               "kind must be cosine, step, multistep, poly, tanh, plateau or constant (got '", o_.kind, "')");
}

double Schedule::run_length() const {
  if (o_.kind == "step" || o_.kind == "multistep" || o_.kind == "plateau" || o_.kind == "constant")
    return o_.total;  // as timm: these have no cool-down
  const double cycles =
      o_.cycle_mul == 1 ? o_.cycle_limit : (1 - std::pow(o_.cycle_mul, o_.cycle_limit)) / (1 - o_.cycle_mul);
  return std::floor(o_.total * cycles) + o_.cooldown;
}

double Schedule::curve(double t) const {
  if (o_.kind == "constant") return o_.lr;
  if (o_.kind == "plateau") return plateau_lr_;
  if (o_.kind == "step") return o_.lr * std::pow(o_.decay_rate, std::floor(t / o_.decay_interval));
  if (o_.kind == "multistep") {
    const auto n = std::upper_bound(o_.milestones.begin(), o_.milestones.end(), t + 1);
    return o_.lr * std::pow(o_.decay_rate, double(n - o_.milestones.begin()));
  }
  if (o_.total <= 0) return o_.min_lr;
  const Cycle c = cycle_at(t, o_);
  if (c.index >= o_.cycle_limit) return o_.min_lr;
  const double span = o_.lr * std::pow(o_.cycle_decay, c.index) - o_.min_lr, x = c.at / c.length;
  if (o_.kind == "cosine") return o_.min_lr + 0.5 * span * (1 + std::cos(std::numbers::pi * x));
  if (o_.kind == "tanh") return o_.min_lr + 0.5 * span * (1 - std::tanh(-7 * (1 - x) + 3 * x));
  return o_.min_lr + span * std::pow(1 - x, o_.decay_rate);
}

double Schedule::base(double t) const {
  if (o_.warmup <= 0) return curve(t);
  if (o_.warmup_scales) return curve(t) * std::min(1.0, (t + o_.interval) / o_.warmup);
  if (t >= o_.warmup) return curve(t);
  // Only tanh does not start at lr where the warm-up ends on the curve.
  const double end = o_.kind == "tanh" ? curve(o_.warmup) : o_.lr;
  return o_.warmup_lr + t * (end - o_.warmup_lr) / o_.warmup;
}

double Schedule::lr(double t) const {
  const double v = base(t);
  if (t < o_.noise_from || t >= o_.noise_to) return v;
  return v * (1 + bounded_normal(o_.noise_seed + uint64_t(t), o_.noise_bound));
}

void Schedule::report(double t, double metric) {
  if (o_.kind != "plateau" || t <= o_.warmup) return;
  constexpr double threshold = 1e-4;
  const bool better =
      o_.higher_is_better ? metric > best_ * (1 + threshold) : metric < best_ * (1 - threshold);
  if (better) {
    best_ = metric;
    bad_ = 0;
  } else if (++bad_ > o_.patience) {
    plateau_lr_ = std::max(plateau_lr_ * o_.decay_rate, o_.min_lr);
    bad_ = 0;
  }
}

void Schedule::load(const std::vector<double>& state) {
  LOWBIT_CHECK(state.size() == 3, io, "schedule", "state must hold 3 numbers (got ", state.size(), ")");
  plateau_lr_ = state[0], best_ = state[1], bad_ = int64_t(state[2]);
}

}  // namespace lowbit
