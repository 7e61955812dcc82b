#include "train/metrics/progress.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>

#include "train/metrics/format.h"

namespace lowbit {
namespace {

int digits(int64_t n) { return int(std::to_string(n).size()); }

double rate(double images, double seconds) { return seconds > 0 ? images / seconds : 0; }

/// A line "VmRSS:   1234 kB" of /proc/self/status.
double status_mib(const std::string& key) {
  std::ifstream in("/proc/self/status");
  for (std::string line; std::getline(in, line);)
    if (line.starts_with(key)) return std::strtod(line.c_str() + key.size() + 1, nullptr) / 1024;
  return 0;
}

}  // namespace

double resident_mib() { return status_mib("VmRSS"); }
double peak_resident_mib() { return status_mib("VmHWM"); }

std::string train_line(const TrainProgress& p) {
  const double images = double(p.batch);
  return format(
      "Train: %lld [%*lld/%lld (%.0f%%)]  Loss: %.3f (%.3f)  Time: %.3fs, %.1f/s (%.3fs, %.1f/s)  LR: %.3e  "
      "Data: %.3f (%.3f)",
      (long long)p.epoch, digits(p.steps), (long long)p.step, (long long)p.steps,
      p.steps > 1 ? 100.0 * double(p.step) / double(p.steps - 1) : 100.0, p.loss.last(), p.loss.mean(),
      p.step_time.last(), rate(images, p.step_time.last()), p.step_time.mean(),
      rate(images, p.step_time.mean()), p.lr, p.data_time.last(), p.data_time.mean());
}

double seconds_left_of_epoch(const TrainProgress& p) {
  return double(std::max<int64_t>(0, p.steps - p.step - 1)) * p.step_time.mean();
}

double seconds_left_of_run(const TrainProgress& p) {
  const double whole = double(p.steps) * p.step_time.mean() + p.eval_seconds;
  return seconds_left_of_epoch(p) + p.eval_seconds +
         double(std::max<int64_t>(0, p.epochs - p.epoch - p.covered)) / double(p.covered) * whole;
}

std::string status_text(const TrainProgress& p) {
  const double wait = p.step_time.mean() > 0 ? 100 * p.data_time.mean() / p.step_time.mean() : 0;
  std::string s = format("epoch %lld/%lld  %lld/%lld %.0f%%  loss %.3f", (long long)p.epoch + 1,
                         (long long)p.epochs, (long long)p.step + 1, (long long)p.steps,
                         100.0 * double(p.step + 1) / double(std::max<int64_t>(1, p.steps)), p.loss.mean());
  if (p.top1.count() > 0) s += format("  top1 %.1f%%", p.top1.mean());
  s += format("  lr %.2e  %.1f img/s  wait %.0f%%  %.0f MiB", p.lr, rate(double(p.batch), p.step_time.mean()),
              wait, resident_mib());
  if (p.flip_rate >= 0) s += format("  flip %.2f%%", 100 * p.flip_rate);
  return s + "  ETA " + duration_text(seconds_left_of_epoch(p)) + " / " +
         duration_text(seconds_left_of_run(p));
}

std::string eval_line(int64_t step, int64_t steps, const RunningMean& time, const RunningMean& loss,
                      const TopCounts& counts) {
  return format("Test: [%*lld/%lld]  Time: %.3f (%.3f)  Loss: %.3f (%.3f)  Acc@1: %.3f  Acc@5: %.3f",
                digits(steps), (long long)step, (long long)steps, time.last(), time.mean(), loss.last(),
                loss.mean(), counts.percent1(), counts.percent5());
}

std::string eval_result(const TopCounts& counts, double loss) {
  return format(" * Acc@1 %.3f Acc@5 %.3f loss %.3f", counts.percent1(), counts.percent5(), loss);
}

std::string duration_text(double seconds) {
  if (!std::isfinite(seconds)) return "?";
  const long long s = std::llround(std::max(0.0, seconds)), days = s / 86400, hours = s / 3600 % 24;
  const int minutes = int(s / 60 % 60), rest = int(s % 60);
  if (days) return format("%lldd %02lld:%02d:%02d", days, hours, minutes, rest);
  if (hours) return format("%lld:%02d:%02d", hours, minutes, rest);
  return format("%d:%02d", minutes, rest);
}

}  // namespace lowbit
