#pragma once
// The safetensors format: u64 header length, JSON header, raw little-endian tensors. Format text:
// https://huggingface.co/docs/safetensors. The reader trusts nothing in the file.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "tensor/core/tensor.h"
#include "tensor/io/raw_type.h"

namespace lowbit {

using TensorMap = std::map<std::string, Tensor>;
using StringMap = std::map<std::string, std::string>;

struct TensorFile {
  TensorMap tensors;
  StringMap metadata;
};

/// Header of a file, checked; tensors are read on demand.
/// Types without a counterpart here are widened as raw_type.h says.
class SafetensorsReader {
 public:
  struct Entry {
    RawType type;  ///< as stored; load() may widen it
    Shape shape;
    uint64_t offset, bytes;  ///< offset in the file
  };
  /// Throws Error(io), one line, for every file that breaks a rule of the format: header longer than 100 MB
  /// or than the file, bad JSON, unknown type, more than 6 dimensions, sizes that overflow or disagree, gaps,
  /// overlaps.
  explicit SafetensorsReader(ByteSource source);
  explicit SafetensorsReader(const std::string& path) : SafetensorsReader(ByteSource::open(path)) {}
  const std::map<std::string, Entry>& entries() const { return entries_; }
  const StringMap& metadata() const { return metadata_; }
  bool has(const std::string& name) const { return entries_.count(name) != 0; }
  Tensor load(const std::string& name) const;

 private:
  ByteSource source_;
  std::map<std::string, Entry> entries_;
  StringMap metadata_;
};

/// Everything in a file. A name that ends in `.index.json` is a sharded set: the shards lie beside it.
TensorFile load_safetensors(const std::string& path);
TensorFile load_safetensors(ByteSource source);

/// Writes atomically. The header is padded to 8 bytes and `format: pt` is added to the metadata; larger types
/// come first so that every tensor is aligned; the bytes are a function of the content alone.
void save_safetensors(const std::string& path, const TensorMap& tensors, const StringMap& metadata = {});

}  // namespace lowbit
