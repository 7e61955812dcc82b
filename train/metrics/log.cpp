#include "train/metrics/log.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "tensor/core/error.h"

namespace lowbit {
namespace {

bool set(const char* variable) {
  const char* v = std::getenv(variable);
  return v && *v;
}

bool dumb_terminal() {
  const char* term = std::getenv("TERM");
  return !term || std::strcmp(term, "dumb") == 0;
}

size_t terminal_width() {
  winsize w{};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 0 ? w.ws_col : 80;
}

constexpr const char* kLevelName[] = {"DEBUG", "INFO", "WARNING", "ERROR"};

}  // namespace

double unix_time() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string iso_time(double unix_seconds) {
  const int64_t ms = int64_t(std::floor(unix_seconds * 1000));
  const std::time_t s = std::time_t(ms / 1000);
  std::tm tm{};
  gmtime_r(&s, &tm);
  char date[32], all[48];
  std::strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S", &tm);
  std::snprintf(all, sizeof all, "%s.%03dZ", date, int(ms % 1000));
  return all;
}

Log::Log(LogOptions o) : o_(std::move(o)) {
  terminal_ = o_.rank == 0 && o_.threshold <= LogLevel::info && isatty(STDERR_FILENO) && !dumb_terminal();
  color_ = isatty(STDERR_FILENO) && !dumb_terminal() && !set("NO_COLOR");
  if (!o_.file.empty()) open_file(o_.file);
}

Log::~Log() { clear_status(); }

void Log::open_file(const std::string& path) {
  file_ = std::make_unique<AppendFile>(path);
  file_->write(early_);
  early_.clear();
}

void Log::print(LogLevel level, const std::string& line) {
  clear_status();
  std::string out;
  if (level >= LogLevel::warning) {
    const std::string label = level == LogLevel::warning ? "warning: " : "error: ";
    out = color_ ? (level == LogLevel::warning ? "\033[33m" : "\033[31m") + label + "\033[0m" : label;
  }
  out += line + "\n";
  std::fwrite(out.data(), 1, out.size(), stderr);
  std::fflush(stderr);
}

void Log::write(LogLevel level, const std::string& text) {
  const std::string stamp =
      str_cat(iso_time(unix_time()), " ", kLevelName[size_t(level)], " rank", o_.rank, " ");
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    if (begin > text.size() && line.empty() && !text.empty()) break;  // the text ended in a line feed
    if (file_)
      file_->write(stamp + line + "\n");
    else if (o_.keep)
      early_ += stamp + line + "\n";
    if (o_.rank == 0 && level >= o_.threshold) print(level, line);
  }
}

void Log::status(const std::string& text) {
  const auto now = std::chrono::steady_clock::now();
  if (!terminal_ || now - last_status_ < std::chrono::milliseconds(200)) return;
  last_status_ = now;
  status_shown_ = true;
  const std::string line = "\r\033[K" + text.substr(0, terminal_width() - 1);
  std::fwrite(line.data(), 1, line.size(), stderr);
  std::fflush(stderr);
}

void Log::clear_status() {
  if (!status_shown_) return;
  status_shown_ = false;
  std::fputs("\r\033[K", stderr);
  std::fflush(stderr);
}

}  // namespace lowbit
