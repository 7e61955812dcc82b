#pragma once
#include <functional>
#include <string>
#include <string_view>

namespace lowbit {

/// A log-like file that only grows. Each write reaches the file at once, so a killed process loses nothing
/// that it reported. Throws Error(run) when the file cannot be opened or written (a full disk).
class AppendFile {
 public:
  explicit AppendFile(std::string path);
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;
  void write(std::string_view bytes);
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  int fd_ = -1;
};

/// Rewrites a text file with the complete lines that `keep` accepts (atomically; nothing happens when it does
/// not exist). For resumed runs: lines after the checkpoint will be written again.
void keep_lines(const std::string& path, const std::function<bool(const std::string&)>& keep);

}  // namespace lowbit
