#pragma once
// Zip archives as torch.save and numpy.savez write them: central directory, zip64, stored and deflated
// entries.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "tensor/io/atomic_file.h"
#include "tensor/io/byte_source.h"

namespace lowbit {

/// Throws Error(io) for damage, encryption, other compression methods and archives whose entries could not
/// all fit into the file (so that a small file never costs much memory).
class ZipReader {
 public:
  struct Entry {
    uint64_t header = 0, compressed = 0, size = 0;
    uint32_t crc = 0;
    bool deflated = false;
  };
  explicit ZipReader(ByteSource source);
  static bool recognises(const ByteSource& source);
  const std::map<std::string, Entry>& entries() const { return entries_; }  ///< files only, no folders
  bool has(const std::string& name) const { return entries_.count(name) != 0; }
  std::string read(const std::string& name) const;  ///< content, its CRC checked
  const std::string& name() const { return source_.name(); }

 private:
  void parse_directory(uint64_t offset, uint64_t size, uint64_t count);
  ByteSource source_;
  std::map<std::string, Entry> entries_;
};

/// CRC-32 of zip and gzip; `before` continues over a sequence of pieces.
uint32_t crc32_of(const void* data, uint64_t n, uint32_t before = 0);

/// Stored entries, each starting at a multiple of 64 as torch.save does; zip64 where a size needs it.
class ZipWriter {
 public:
  explicit ZipWriter(AtomicFile& out) : out_(out) {}
  void add(const std::string& name, const void* data, uint64_t size);
  void add(const std::string& name, std::string_view text) { add(name, text.data(), text.size()); }
  void finish();

 private:
  void put(const std::string& bytes);
  AtomicFile& out_;
  uint64_t position_ = 0, count_ = 0;
  std::string directory_;
};

}  // namespace lowbit
