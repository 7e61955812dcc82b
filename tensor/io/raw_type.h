#pragma once
// Element types as files store them, and their conversion to the types of this library.

#include <string>

#include "tensor/core/tensor.h"
#include "tensor/io/byte_source.h"

namespace lowbit {

enum class RawType : uint8_t {
  f64,
  f32,
  f16,
  bf16,
  i64,
  i32,
  i16,
  i8,
  u8,
  b8,
  u16,
  u32,
  u64,
  f8_e4m3,
  f8_e5m2
};

uint64_t raw_size(RawType t);
/// Type in memory. Types without a counterpart are widened: i16 and u16 → i32, u32 and u64 → i64, f8 → f32.
DType memory_type(RawType t);
RawType raw_type(DType t);  ///< the exact counterpart

/// Shape from untrusted extents, with its number of bytes; Error(io) when negative, more than 6 or
/// overflowing.
Shape checked_shape(const int64_t* dims, size_t n, RawType t, const std::string& where, uint64_t& bytes);

/// numel·raw_size bytes → tensor. Bool bytes become 0 or 1; a u64 above 2^63-1 is an Error(io) naming
/// `where`.
Tensor decode_raw(RawType t, const Shape& shape, const char* bytes, const std::string& where);
/// The same from a file, without an intermediate copy where the type is kept.
Tensor read_raw(RawType t, const Shape& shape, const ByteSource& source, uint64_t offset,
                const std::string& where);

}  // namespace lowbit
