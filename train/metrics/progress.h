#pragma once
// The texts of progress, close to timm's because people's scripts search for them.

#include <cstdint>
#include <string>

#include "train/metrics/averages.h"

namespace lowbit {

/// State of a training epoch after some step.
struct TrainProgress {
  int64_t epoch = 0, epochs = 0;     ///< index and number
  int64_t covered = 1;               ///< epochs that this pass counts for
  int64_t step = 0, steps = 0;       ///< index in the epoch and number
  RunningMean loss, top1;            ///< top1 in percent
  RunningMean step_time, data_time;  ///< seconds
  int64_t batch = 0;                 ///< images per step
  double lr = 0;
  double flip_rate = -1;    ///< share of weights that changed their code; negative: not measured
  double eval_seconds = 0;  ///< of the last evaluation, for the estimate of the run
};

/// Train: 12 [ 500/2502 (20%)]  Loss: 2.913 (2.954)  Time: 0.281s, 1822.1/s (0.290s, 1765.5/s)  LR: 4.731e-04
/// Data: 0.004 (0.012)     (one line)
std::string train_line(const TrainProgress& p);
/// Epoch, share done, mean loss, top-1, lr, img/s, data wait, memory, flip rate, time left of epoch and run.
std::string status_text(const TrainProgress& p);
/// Test: [  10/  79]  Time: 0.100 (0.110)  Loss: 1.234 (1.250)  Acc@1: 64.062 (65.1)  Acc@5: …
std::string eval_line(int64_t step, int64_t steps, const RunningMean& time, const RunningMean& loss,
                      const TopCounts& counts);
///  * Acc@1 64.330 Acc@5 85.912 loss 1.571
std::string eval_result(const TopCounts& counts, double loss);

double seconds_left_of_epoch(const TrainProgress& p);
double seconds_left_of_run(const TrainProgress& p);
std::string duration_text(double seconds);  ///< "0:12", "1:02:03", "2d 03:04:05"
double resident_mib();                      ///< memory of this process
double peak_resident_mib();

}  // namespace lowbit
