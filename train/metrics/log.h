#pragma once
// Messages for people: stderr and log.txt. Results go to stdout and are not the log's business.

#include <chrono>
#include <memory>
#include <string>

#include "train/metrics/append_file.h"

namespace lowbit {

enum class LogLevel : uint8_t { debug, info, warning, error };

struct LogOptions {
  LogLevel threshold = LogLevel::info;  ///< of what goes to stderr; the file gets debug too
  std::string file;                     ///< log.txt; empty: none
  int rank = 0;                         ///< only rank 0 prints
  bool keep = true;                     ///< a file will be opened; it gets the messages before that too
};

/// On a terminal a status line may stand below the messages; it is redrawn at most five times a second.
/// Honours NO_COLOR and TERM=dumb (a dumb terminal gets plain lines).
class Log {
 public:
  explicit Log(LogOptions o = {});
  ~Log();
  void debug(const std::string& text) { write(LogLevel::debug, text); }
  void info(const std::string& text) { write(LogLevel::info, text); }
  void warning(const std::string& text) { write(LogLevel::warning, text); }
  void error(const std::string& text) { write(LogLevel::error, text); }
  /// Several lines become several messages.
  void write(LogLevel level, const std::string& text);

  bool status_line() const { return terminal_; }  ///< a status line can be shown
  void status(const std::string& text);           ///< too soon after the last: ignored
  void clear_status();
  /// Messages also go to this file, the earlier ones included: the run folder is known later than the first
  /// message.
  void open_file(const std::string& path);

 private:
  void print(LogLevel level, const std::string& line);
  LogOptions o_;
  std::unique_ptr<AppendFile> file_;
  std::string early_;  ///< what the file missed
  bool terminal_, color_, status_shown_ = false;
  std::chrono::steady_clock::time_point last_status_{};
};

/// "2026-03-01T12:34:56.789Z" of now or of the given unix time.
std::string iso_time(double unix_seconds);
double unix_time();

}  // namespace lowbit
