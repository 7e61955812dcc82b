#include "train/metrics/append_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "tensor/core/error.h"
#include "tensor/io/atomic_file.h"

namespace lowbit {

AppendFile::AppendFile(std::string path) : path_(std::move(path)) {
  fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  LOWBIT_CHECK(fd_ >= 0, run, "write", "cannot open '", path_, "': ", std::strerror(errno));
}

AppendFile::~AppendFile() { ::close(fd_); }

void AppendFile::write(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd_, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    LOWBIT_CHECK(n > 0, run, "write", "cannot write '", path_, "': ", std::strerror(errno));
    bytes.remove_prefix(size_t(n));
  }
}

void keep_lines(const std::string& path, const std::function<bool(const std::string&)>& keep) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return;
  std::string kept;
  for (std::string line; std::getline(in, line) && !in.eof();)  // a last line without '\n' was cut short
    if (keep(line)) kept += line + "\n";
  in.close();
  write_file_atomic(path, kept);
}

}  // namespace lowbit
