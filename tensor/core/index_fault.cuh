#pragma once
// Indices that a kernel reads from the device and that are out of range. The host could find them only by
// waiting, a kernel cannot throw: the first bad one goes into a record in pinned memory, and whoever next
// reads anything from the device (Tensor::to), which waits anyway, ends with the error.

#include "tensor/core/cuda_runtime.cuh"

namespace lowbit::cuda {

struct IndexFault {
  unsigned count;  ///< of bad indices so far; the first of them is described
  const char *op, *what, *where;
  int64_t index, place, end;
};
IndexFault* index_fault(Device d);

/// "<op>: <what>s must be in [0, end) (got <what> <index> at <where> <place>)"
struct IndexRange {
  IndexFault* fault;
  const char *op, *what, *where;  ///< of the host: a kernel only hands them on
  int64_t end;

  /// Whether `index` may be used; it stands at `place` of the indices.
  __device__ bool holds(int64_t index, int64_t place) const {
    if (index >= 0 && index < end) return true;
    if (atomicAdd(&fault->count, 1u) == 0) {
      fault->op = op, fault->what = what, fault->where = where;
      fault->index = index, fault->place = place, fault->end = end;
    }
    return false;
  }
};

}  // namespace lowbit::cuda
