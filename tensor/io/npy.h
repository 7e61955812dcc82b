#pragma once
// NumPy's .npy (versions 1 to 3) and .npz. Format text: numpy/lib/format.py.

#include <optional>
#include <string>

#include "tensor/io/safetensors.h"

namespace lowbit {

/// Element type of a descr without its byte order ("f4", "b1", "u2"); none when it has no counterpart.
std::optional<RawType> numpy_type(const std::string& descr);

/// Contiguous tensor with the dimensions in reverse order: what a Fortran-order array read as C order has to
/// become.
Tensor reversed(const Tensor& t);

/// One array, C or Fortran order, little endian; foreign integer types are widened as raw_type.h says.
/// Throws Error(io) for anything else (objects, records, strings, big endian) and for damage.
Tensor load_npy(const ByteSource& source);
/// Version 1.0, C order. bf16, which NumPy does not know, is written as f32.
void save_npy(const std::string& path, const Tensor& t);
void save_npz(const std::string& path, const TensorMap& tensors);  ///< entries stored, not compressed
/// Name (without ".npy") → array of every entry.
TensorMap load_npz(const ByteSource& source);

}  // namespace lowbit
