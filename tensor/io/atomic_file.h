#pragma once
// The one way this program writes a result file: a reader sees the old content or the new, never half of it.

#include <cstddef>
#include <string>
#include <string_view>

namespace lowbit {

/// Writes to `<path>.tmp`; commit() syncs it, renames it to `path` and syncs the folder. Without commit() the
/// temporary file is removed. A temporary left by a killed process is overwritten by the next writer; two
/// live writers of one path are refused. Every failure (full disk, no permission) throws Error(run).
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  void write(const void* data, size_t n);
  void write(std::string_view text) { write(text.data(), text.size()); }
  void commit();

 private:
  void discard();
  [[noreturn]] void fail_errno(const char* action);
  std::string path_, temp_;
  int fd_ = -1;
};

/// The whole file at once.
void write_file_atomic(const std::string& path, std::string_view content);

}  // namespace lowbit
