#pragma once
// Random-access bytes of an input file (or of memory), bounds-checked: every reader of tensor/io is built on
// it. Files are read with pread, not mapped: a file that another process truncates gives an error, not a
// SIGBUS.

#include <cstdint>
#include <memory>
#include <string>

namespace lowbit {

class ByteSource {
 public:
  /// Opens a regular file. Throws Error(io) when it is missing, unreadable or not a regular file.
  static ByteSource open(const std::string& path);
  static ByteSource memory(std::string bytes, std::string name);

  uint64_t size() const { return size_; }
  const std::string& name() const { return name_; }
  /// Copies n bytes from `offset`; throws Error(io) "truncated" when they are not all there.
  void read(uint64_t offset, void* dst, uint64_t n) const;
  std::string read_string(uint64_t offset, uint64_t n) const;
  /// Little-endian unsigned integer of sizeof(T) bytes.
  template <class T>
  T read_le(uint64_t offset) const {
    T v;
    read(offset, &v, sizeof v);
    return v;
  }

 private:
  struct File;
  std::shared_ptr<const File> file_;
  std::shared_ptr<const std::string> bytes_;
  uint64_t size_ = 0;
  std::string name_;
};

/// Text from a file made fit for a one-line message: control characters and bytes above 126 become '?', long
/// text is cut.
std::string printable(const std::string& text, size_t limit = 80);

/// a*b and a+b, false on overflow.
inline bool checked_mul(uint64_t a, uint64_t b, uint64_t& r) { return !__builtin_mul_overflow(a, b, &r); }
inline bool checked_add(uint64_t a, uint64_t b, uint64_t& r) { return !__builtin_add_overflow(a, b, &r); }

}  // namespace lowbit
