#pragma once
// Files of torch.save: the zip form (since 1.6) and the legacy stream. Nothing in them is ever executed.

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tensor/io/pickle.h"
#include "tensor/io/safetensors.h"
#include "tensor/io/zip.h"

namespace lowbit {

/// Not safe for concurrent use of one object (the last storage is cached).
class TorchFile {
 public:
  /// Throws Error(io) for anything that is not a complete, plausible file.
  explicit TorchFile(ByteSource source);
  explicit TorchFile(const std::string& path) : TorchFile(ByteSource::open(path)) {}
  static bool recognises(const ByteSource& source);  ///< by content; a zip must hold a data.pkl

  const PyValue& root() const { return *root_; }
  /// Contiguous copy of a value of kind tensor or array.
  Tensor tensor(const PyValue& v) const;
  /// Every tensor and array below `v` with its path: dict keys and list indices joined by dots. Integer keys
  /// are written in decimal; opaque records are not entered.
  std::vector<std::pair<std::string, const PyValue*>> tensors(const PyValue& v) const;
  TensorMap load_all(const PyValue& v) const;

 private:
  void open_zip();
  void open_legacy();
  void check_refs() const;
  const std::string& storage_bytes(const PyValue& storage) const;

  struct Span {
    uint64_t offset, bytes;
  };
  ByteSource source_;
  PyTree tree_;
  PyValue* root_ = nullptr;
  std::optional<ZipReader> zip_;
  std::string prefix_;                    ///< of zip entries, with its slash
  std::map<std::string, Span> storages_;  ///< legacy: key → data
  mutable std::string cached_key_, cached_;
  mutable bool has_cached_ = false;
};

/// A plain dict name → tensor in the zip form; torch.load(path, weights_only=True) accepts it. Atomic.
void save_torch(const std::string& path, const TensorMap& tensors);
/// torch.save of a list of NumPy arrays (f32, f16, i64, b8), the form of FKD's label files. Atomic.
void save_torch_arrays(const std::string& path, const std::vector<Tensor>& arrays);

}  // namespace lowbit
