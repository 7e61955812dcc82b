#pragma once
// Checkpoints of a run: written atomically, checked when read, never without a usable predecessor.

#include <cstdint>
#include <optional>
#include <string>

#include "tensor/io/safetensors.h"

namespace lowbit {

/// Tensors and strings in one safetensors file, with a checksum of the tensors in its metadata (key "crc32").
struct Checkpoint {
  TensorMap tensors;
  StringMap meta;
};
/// Hexadecimal CRC-32 over names, types, shapes and contents, in the order of names.
std::string checksum(const TensorMap& tensors);
void save_checkpoint(const std::string& path, const Checkpoint& c);
/// Throws Error(io) when the file is damaged, a wrong checksum included. A file without one (from another
/// program) is accepted.
Checkpoint load_checkpoint(const std::string& path);

/// The checkpoint files of one run folder:
///   last.safetensors, last.state            newest weights and training state
///   previous.safetensors, previous.state    the pair before
///   best.safetensors, checkpoint-<epoch>.safetensors
/// State and weights name each other by checksum, so a crash between the two writes cannot mix two steps.
class RunCheckpoints {
 public:
  /// keep: number of checkpoint-<epoch> files that stay; 0 keeps all.
  explicit RunCheckpoints(std::string folder, int keep = 0) : folder_(std::move(folder)), keep_(keep) {}

  void save_last(const Checkpoint& weights, const Checkpoint& state);
  void save_best(const Checkpoint& weights) const;
  /// Older files are removed only after the new one is in place.
  void save_epoch(int64_t epoch, const Checkpoint& weights) const;

  struct Resume {
    Checkpoint weights, state;
    std::string
        note;  ///< not empty when the newest checkpoint could not be used: what was wrong, what is used
  };
  /// The newest intact pair; nothing when the folder holds no checkpoint. Throws Error(io) when all are
  /// damaged.
  std::optional<Resume> load_last() const;

  std::string path(const std::string& file) const { return folder_ + "/" + file; }

 private:
  bool last_is_intact() const;
  std::string folder_;
  int keep_;
  bool wrote_last_ = false;  ///< by this object: known to be intact
};

}  // namespace lowbit
