#pragma once
// Weights from any supported file, brought under the names of a model.

#include <functional>
#include <string>
#include <vector>

#include "tensor/io/pickle.h"
#include "tensor/io/safetensors.h"

namespace lowbit {

enum class FileFormat { safetensors, torch, npy, npz };
/// By content, not by name. Throws Error(io) when it is none of them.
FileFormat detect_format(const ByteSource& source);
const char* format_name(FileFormat f);

/// Value at a dotted path ("model_ema") of a torch file's dicts. Throws Error(io) when there is none.
const PyValue& torch_section(const PyValue& root, const std::string& path, const std::string& file);

struct WeightFile {
  std::string path;
  FileFormat format = FileFormat::safetensors;
  std::string section;  ///< where a torch file kept the weights ("model_ema"), empty for the root
  TensorMap tensors;
  StringMap metadata;  ///< of a safetensors file; plain values at the root of a torch file ("epoch": "12")
};

struct WeightOptions {
  std::string section;  ///< dotted path in a torch file, e.g. "model_ema"; empty: the usual ones in order
  bool widen = true;    ///< f16 and bf16 → f32
};

/// Reads a .safetensors (or its .index.json), torch (zip or legacy), .npy or .npz file. Wrapping dicts
/// (state_dict, model, net, module, then model_ema, state_dict_ema, ema) are opened, and prefixes that every
/// name has (module., model., state_dict., _orig_mod.) removed.
WeightFile load_weights(const std::string& path, const WeightOptions& options = {});

/// What a file gives to a model and what it does not.
struct WeightMatch {
  struct Mismatch {
    std::string name;
    Shape model, file;
  };
  TensorMap matched;  ///< by the model's names, in the model's shapes and types
  std::vector<std::string> missing, unexpected;
  std::vector<Mismatch> mismatched;
  std::vector<std::string> renamed;  ///< "file name -> model name", for the log

  bool complete() const { return missing.empty() && unexpected.empty() && mismatched.empty(); }
  std::string table() const;     ///< every problem on its own line
  std::string examples() const;  ///< the first problem of each kind, in one line
  std::string summary() const;   ///< "2 missing, 1 unexpected, 0 of another shape"
};

/// Turns a tensor of another shape into one of the model's, e.g. interpolates position embeddings; an
/// undefined result means it cannot.
using AdaptTensor = std::function<Tensor(const std::string& name, const Tensor& tensor, const Shape& target)>;

/// Fits the file's tensors to a model's state (name → tensor, for its shapes and types). Names that do not
/// fit as they are go through the renames of timm 0.3 to 1.0 and of BERT; fused attn.qkv is cut into
/// attn.proj_q|proj_k|proj_v and the reverse, rows in thirds; buffers that other implementations store and
/// this one computes are ignored.
WeightMatch match_weights(const TensorMap& model, const WeightFile& file, const AdaptTensor& adapt = {});

/// Throws Error(io), one line, unless everything fits; with allow_partial unless at least one tensor fits.
void require_match(const WeightMatch& match, const std::string& path, bool allow_partial);

}  // namespace lowbit
