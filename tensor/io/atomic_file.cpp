#include "tensor/io/atomic_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "tensor/core/error.h"

namespace lowbit {

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)) {
  LOWBIT_CHECK(!path_.empty(), run, "write", "a file name is needed");
  std::error_code ec;
  if (std::filesystem::is_symlink(path_, ec)) {  // write through the link, as a plain open would
    const auto target = std::filesystem::weakly_canonical(path_, ec);
    if (!ec) path_ = target.string();
  }
  struct stat st {};
  LOWBIT_CHECK(::stat(path_.c_str(), &st) != 0 || S_ISREG(st.st_mode), run, "write", path_,
               " exists and is not a regular file");
  temp_ = path_ + ".tmp";
  for (;;) {
    fd_ = ::open(temp_.c_str(), O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (fd_ < 0) fail_errno("cannot create");
    const bool locked = ::flock(fd_, LOCK_EX | LOCK_NB) == 0;
    if (!locked && errno == EWOULDBLOCK) {
      ::close(fd_), fd_ = -1;
      fail(ErrorKind::run, "write", "another process is writing " + path_);
    }
    // Between open and lock the file may have been renamed into place by its writer: then start again.
    struct stat mine {
    }, there{};
    ::fstat(fd_, &mine);
    if (::stat(temp_.c_str(), &there) == 0 && mine.st_ino == there.st_ino && mine.st_dev == there.st_dev)
      break;
    ::close(fd_), fd_ = -1;
  }
  if (::ftruncate(fd_, 0) != 0) fail_errno("cannot write");
}

AtomicFile::~AtomicFile() { discard(); }

void AtomicFile::discard() {
  if (fd_ < 0) return;
  ::unlink(temp_.c_str());
  ::close(fd_);
  fd_ = -1;
}

void AtomicFile::fail_errno(const char* action) {
  const std::string why = std::strerror(errno);
  discard();
  fail(ErrorKind::run, "write", str_cat(action, " ", path_, ": ", why));
}

void AtomicFile::write(const void* data, size_t n) {
  LOWBIT_CHECK(fd_ >= 0, run, "write", path_, " is already closed");
  const char* p = static_cast<const char*>(data);
  while (n > 0) {
    const ssize_t put = ::write(fd_, p, n);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) fail_errno("cannot write");
    p += put, n -= size_t(put);
  }
}

void AtomicFile::commit() {
  LOWBIT_CHECK(fd_ >= 0, run, "write", path_, " is already closed");
  if (::fsync(fd_) != 0 && errno != EINVAL) fail_errno("cannot sync");
  if (::rename(temp_.c_str(), path_.c_str()) != 0) fail_errno("cannot rename to");
  const int status = ::close(fd_);
  fd_ = -1;
  LOWBIT_CHECK(status == 0, run, "write", "cannot close ", path_, ": ", std::strerror(errno));
  const std::string parent = std::filesystem::path(path_).parent_path().string();
  const int dir = ::open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (dir >= 0) {  // some file systems cannot sync a folder; the rename itself has succeeded
    ::fsync(dir);
    ::close(dir);
  }
}

void write_file_atomic(const std::string& path, std::string_view content) {
  AtomicFile f(path);
  f.write(content);
  f.commit();
}

}  // namespace lowbit
