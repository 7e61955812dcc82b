#include "tensor/io/byte_source.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstring>

#include "tensor/core/error.h"

namespace lowbit {

static_assert(std::endian::native == std::endian::little, "the readers assume a little-endian machine");

struct ByteSource::File {
  explicit File(int fd) : fd(fd) {}
  ~File() { ::close(fd); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int fd;
};

ByteSource ByteSource::open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  LOWBIT_CHECK(fd >= 0, io, "read", "cannot open ", path, ": ", std::strerror(errno));
  ByteSource s;
  s.file_ = std::make_shared<File>(fd);
  struct stat st {};
  LOWBIT_CHECK(::fstat(fd, &st) == 0 && S_ISREG(st.st_mode), io, "read", path, " is not a regular file");
  s.size_ = uint64_t(st.st_size);
  s.name_ = path;
  return s;
}

ByteSource ByteSource::memory(std::string bytes, std::string name) {
  ByteSource s;
  s.size_ = bytes.size();
  s.bytes_ = std::make_shared<std::string>(std::move(bytes));
  s.name_ = std::move(name);
  return s;
}

void ByteSource::read(uint64_t offset, void* dst, uint64_t n) const {
  LOWBIT_CHECK(offset <= size_ && n <= size_ - offset, io, "read", name_, " is truncated (", n,
               " bytes wanted at ", offset, ", file has ", size_, ")");
  if (n == 0) return;
  if (bytes_) {
    std::memcpy(dst, bytes_->data() + offset, n);
    return;
  }
  char* p = static_cast<char*>(dst);
  while (n > 0) {
    const ssize_t got = ::pread(file_->fd, p, n, off_t(offset));
    if (got < 0 && errno == EINTR) continue;
    LOWBIT_CHECK(got >= 0, io, "read", "cannot read ", name_, ": ", std::strerror(errno));
    LOWBIT_CHECK(got > 0, io, "read", name_, " became shorter while it was read");
    p += got, offset += uint64_t(got), n -= uint64_t(got);
  }
}

std::string ByteSource::read_string(uint64_t offset, uint64_t n) const {
  LOWBIT_CHECK(offset <= size_ && n <= size_ - offset, io, "read", name_, " is truncated (", n,
               " bytes wanted at ", offset, ", file has ", size_, ")");
  std::string s(n, '\0');
  read(offset, s.data(), n);
  return s;
}

std::string printable(const std::string& text, size_t limit) {
  std::string r = text.substr(0, limit);
  for (char& c : r)
    if (c < 32 || c > 126) c = '?';
  return text.size() > limit ? r + "..." : r;
}

}  // namespace lowbit
