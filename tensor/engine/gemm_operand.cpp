#include "tensor/engine/gemm_operand.h"

#include <algorithm>

#include "tensor/core/thread_pool.h"
#include "tensor/engine/gemm_library.h"

namespace lowbit::detail {
namespace {

void copy_operand_cpu(const OperandCopyArgs& a, Stream) {
  const int64_t n = a.inner();
  parallel_for(a.lines(), std::max<int64_t>(1, (1 << 13) / std::max<int64_t>(n, 1)),
               [&a, n](int64_t begin, int64_t end) {
                 for (int64_t at = begin; at < end; ++at) {
                   const OperandCopyArgs::Line line = a.line(at);
                   for (int64_t i = 0; i < n; ++i) a.element(line, i);
                 }
               });
}

bool repeats(const GemmOperand& o, int d) {
  return o.stride.batch[d] == 0 && (!o.scale || o.scale_stride.batch[d] == 0) &&
         (!o.offset || o.offset_stride.batch[d] == 0);
}

}  // namespace

constinit KernelSlot<OperandCopyArgs> copy_operand{"gemm.operand", copy_operand_cpu};

OperandCopy copy_of(const GemmOperand& from, const ProductArgs& g, int64_t rows, DType dtype, int parts,
                    bool tf32, Device d) {
  OperandCopyArgs a;
  a.from = from;
  a.rows = rows, a.k = g.k;
  a.dtype = dtype, a.parts = parts, a.tf32 = tf32;
  a.k_inner = from.stride.k == 1 || from.stride.row != 1;
  const int64_t per_16_bytes = 16 / int64_t(dtype_size(dtype));  // lines that a GPU reads in whole words
  a.pitch = (std::max<int64_t>(a.inner(), 1) + per_16_bytes - 1) / per_16_bytes * per_16_bytes;
  OperandCopy r;
  GemmOperand& o = r.operand;
  int64_t stride = a.outer() * a.pitch;
  for (int i = kMaxBatchDims - 1; i >= 0; --i) {
    if (repeats(from, i)) continue;
    a.batch[i] = g.batch[i];
    o.stride.batch[i] = stride;
    stride *= g.batch[i];
  }
  r.part = stride;
  r.memory = Tensor::empty({parts * stride}, dtype, d);
  a.to = r.memory.mutable_view().data;
  copy_operand(a, d);
  o.data = a.to, o.dtype = dtype;
  (a.k_inner ? o.stride.k : o.stride.row) = 1;
  (a.k_inner ? o.stride.row : o.stride.k) = a.pitch;
  return r;
}

PreparedOperands prepare_operands(GemmArgs& g, const GemmMode& mode, Device d) {
  PreparedOperands r;
  if (g.c_dtype == DType::f64) return r;
  g.library = mode.library && d.is_cuda();
  g.tf32 = mode.inputs == MathMode::tf32;
  const bool both_bf16 = g.a.dtype == DType::bf16 && g.b.dtype == DType::bf16;
  const DType wanted = mode.inputs == MathMode::bf16 || both_bf16 ? DType::bf16 : DType::f32;
  const auto prepare = [&](GemmOperand& o, int64_t rows, Tensor& memory) {
    const bool rounded =
        wanted == DType::bf16 ? o.dtype != DType::bf16 : g.tf32 && !g.library && o.dtype != DType::bf16;
    const bool formed = !g.library || (o.dtype == wanted && library_lines(o, rows, g.k));
    if (!rounded && formed) return;
    OperandCopy copy = copy_of(o, g, rows, wanted, 1, g.tf32 && !g.library, d);
    memory = copy.memory, o = copy.operand;
  };
  prepare(g.a, g.m, r.a);
  prepare(g.b, g.n, r.b);
  return r;
}

}  // namespace lowbit::detail
