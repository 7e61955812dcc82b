#pragma once
// What the product kernels on CUDA share: a block of threads per tile of C.

#include "tensor/core/cuda_runtime.cuh"
#include "tensor/engine/gemm.h"

namespace lowbit::cuda {

inline constexpr int kProductTile = 64, kProductThreads = 256;

LOWBIT_HD int64_t product_tiles(int64_t n) { return (n + kProductTile - 1) / kProductTile; }

/// Blocks of a launch: tiles of all batches in one dimension, which has no small limit.
inline unsigned product_blocks(const char* op, const ProductArgs& g) {
  const int64_t blocks = g.batch[0] * g.batch[1] * g.batch[2] * product_tiles(g.m) * product_tiles(g.n);
  LOWBIT_CHECK(blocks <= 0x7fffffff, shape, op, "too large for the cuda kernel (got m=", g.m, ", n=", g.n,
               ")");
  return unsigned(blocks);
}

/// The one of several pieces of work in a launch that `block` falls into, and the block's number in it; null
/// behind the last one.
template <class Task>
__device__ const Task* task_at(const Task* tasks, int count, unsigned Task::*blocks, unsigned& block) {
  for (int i = 0; i < count; ++i) {
    if (block < tasks[i].*blocks) return tasks + i;
    block -= tasks[i].*blocks;
  }
  return nullptr;
}

/// The tile of a block; tiles of a row of C are neighbours.
struct ProductTile {
  BatchIndex batch;
  int64_t m, n;  ///< first row and column
  __device__ explicit ProductTile(const ProductArgs& g, int64_t block = blockIdx.x) {
    const int64_t across = product_tiles(g.n), down = product_tiles(g.m), row = block / across;
    n = block % across * kProductTile;
    m = row % down * kProductTile;
    batch = BatchIndex::of(g, row / down);
  }
};

}  // namespace lowbit::cuda
