#include "train/step/stop.h"

#include <csignal>
#include <cstdlib>
#include <ctime>
#include <limits>

namespace lowbit {
namespace {

volatile std::sig_atomic_t received = 0;

// Async-signal-safe: touches one flag and, for the second SIGINT, the disposition.
void on_signal(int number) {
  if (number == SIGINT && received == SIGINT) {
    std::signal(SIGINT, SIG_DFL);
    std::raise(SIGINT);
  }
  if (received == 0 || number == SIGINT) received = number;
}

const char* signal_name(int number) {
  return number == SIGTERM   ? "SIGTERM"
         : number == SIGUSR1 ? "SIGUSR1"
         : number == SIGUSR2 ? "SIGUSR2"
                             : "SIGINT";
}

double limit_of_the_job() {
  constexpr double none = std::numeric_limits<double>::infinity();
  const char* end = std::getenv("SLURM_JOB_END_TIME");
  if (!end) return none;
  const double unix_seconds = std::strtod(end, nullptr);
  return unix_seconds > 0 ? unix_seconds - double(std::time(nullptr)) : none;
}

}  // namespace

void install_stop_signals() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  for (int number : {SIGTERM, SIGUSR1, SIGUSR2, SIGINT}) sigaction(number, &action, nullptr);
}

int stop_signal() { return received; }
void clear_stop_signal() { received = 0; }

StopControl::StopControl(double limit_seconds)
    : limit_(limit_seconds > 0 ? limit_seconds : limit_of_the_job()) {}

double StopControl::seconds_left() const {
  return limit_ - std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

bool StopControl::should_stop(double reserve_seconds) {
  if (!reason_.empty()) return true;
  if (const int number = stop_signal())
    reason_ = std::string("signal ") + signal_name(number);
  else if (seconds_left() < 2 * reserve_seconds)
    reason_ = "time limit";
  return !reason_.empty();
}

}  // namespace lowbit
