#pragma once
// What the verbs `inspect`, `diff` and `convert` do with weight files.

#include <optional>
#include <string>

#include "train/checkpoint/weights.h"

namespace lowbit {

struct InspectOptions {
  std::string section;  ///< of a torch file; empty: the whole tree
  bool values = false;  ///< minimum, maximum, mean and number of non-finite elements of every tensor
};
/// Format, metadata and a table of the tensors as stored (names are not changed); plain values and opaque
/// records of torch files as well.
std::string inspect_file(const std::string& path, const InspectOptions& options = {});

struct DiffReport {
  std::string text;    ///< one line per tensor that differs or is missing on a side, then a summary
  bool equal = false;  ///< same names, shapes and values
};
/// Largest absolute and relative difference per tensor, after wrappers and prefixes are removed and halves
/// widened; equal NaN positions count as equal. Relative to the larger magnitude of the two elements.
DiffReport diff_files(const std::string& a, const std::string& b);

struct ConvertOptions {
  std::optional<DType> dtype;  ///< of floating tensors: f32, f16 or bf16; none keeps what is stored
  std::string section;         ///< of a torch input
};
/// Writes the weights of `in` to `out`; the extension of `out` says how: .safetensors, .pth/.pt/.bin (zip
/// form, accepted by torch.load(weights_only=True)), .npz, .npy (one tensor). Returns a line that says what
/// was written. Throws Error(usage) for other extensions, and when a finite value does not fit into f16.
std::string convert_file(const std::string& in, const std::string& out, const ConvertOptions& options = {});

}  // namespace lowbit
