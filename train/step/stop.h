#pragma once
// Leaving a run cleanly: signals and time limits are noticed between two steps.

#include <chrono>
#include <string>

namespace lowbit {

/// SIGTERM, SIGUSR1, SIGUSR2 and the first SIGINT only set a flag; a second SIGINT ends the program at once.
/// System calls interrupted by the handler are restarted.
void install_stop_signals();
/// Number of the first signal that arrived, 0 when none.
int stop_signal();
/// For tests and for a second run in one process.
void clear_stop_signal();

class StopControl {
 public:
  /// limit_seconds 0: the end of the Slurm job ($SLURM_JOB_END_TIME) when set, else no limit. Time counts
  /// from the construction.
  explicit StopControl(double limit_seconds);
  /// Asked after every step. `reserve` is the time that one more step and a checkpoint take; it is doubled
  /// for safety.
  bool should_stop(double reserve_seconds);
  /// "signal SIGTERM" or "time limit"; empty before should_stop() said yes.
  const std::string& reason() const { return reason_; }
  double seconds_left() const;  ///< infinite without a limit

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  double limit_;  ///< seconds after start_
  std::string reason_;
};

}  // namespace lowbit
