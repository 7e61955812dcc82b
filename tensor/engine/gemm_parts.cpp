#include "tensor/engine/gemm_parts.h"

#include <algorithm>
#include <cmath>

#include "tensor/core/thread_pool.h"
#include "tensor/engine/gemm_operand.h"

namespace lowbit::detail {
namespace {

constexpr int64_t kGrain = 1 << 13;  // elements that are worth a task

void line_sums_cpu(const LineSumArgs& a, Stream) {
  const int64_t blocks = a.blocks();
  parallel_for(a.all_lines(), std::max<int64_t>(1, kGrain / std::max<int64_t>(a.k, 1)),
               [&a, blocks](int64_t begin, int64_t end) {
                 for (int64_t line = begin; line < end; ++line) {
                   for (int64_t b = 0; b < blocks; ++b) a.block(line, b);
                   a.total(line);
                 }
               });
}

void parts_finish_cpu(const PartsFinishArgs& a, Stream) {
  parallel_for(a.elements(), kGrain, [&a](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e) a.element(e);
  });
}

Tensor doubles(int64_t n, Device d) { return Tensor::empty({n}, DType::f64, d); }

/// D of every line of floats; `memory` must live until the kernels have been started.
const double* offset_sums(const GemmArgs& g, bool codes_first, Tensor (&memory)[2], Device d) {
  const GemmOperand &floats = codes_first ? g.b : g.a, &codes = codes_first ? g.a : g.b;
  LineSumArgs s;
  s.floats = floats;
  if (codes.offset_stride.k) s.e = codes.offset, s.e_stride = codes.offset_stride;
  std::copy_n(g.batch, kMaxBatchDims, s.batch);
  s.lines = codes_first ? g.n : g.m, s.k = g.k, s.alpha = g.alpha;
  memory[0] = doubles(s.all_lines() * s.blocks(), d), memory[1] = doubles(s.all_lines(), d);
  s.partial = memory[0].data<double>(), s.sums = memory[1].data<double>();
  line_sums(s, d);
  return s.sums;
}

}  // namespace

constinit KernelSlot<LineSumArgs> line_sums{"gemm.line_sums", line_sums_cpu};
constinit KernelSlot<PartsFinishArgs> parts_finish{"gemm.parts_finish", parts_finish_cpu};

bool parts_apply(const GemmArgs& g) {
  const bool a = is_codes(g.a), b = is_codes(g.b);
  if (a == b || (a ? g.b : g.a).dtype != DType::f32 || g.c_dtype != DType::f32 || g.bias || g.beta != 0)
    return false;
  const GemmOperand& codes = a ? g.a : g.b;
  const double top = std::max(std::fabs(codes.lo + codes.shift), std::fabs(codes.hi + codes.shift));
  if (codes.shift == std::rint(codes.shift)) return top <= 256;
  return 2 * codes.shift == std::rint(2 * codes.shift) && top <= 128;
}

void gemm_parts(const GemmArgs& g, int parts, Device d) {
  const bool codes_first = is_codes(g.a);
  GemmOperand floats = codes_first ? g.b : g.a, codes = codes_first ? g.a : g.b;
  const bool line_scale = codes.scale_stride.row != 0;
  if (!line_scale) floats.scale = codes.scale, floats.scale_stride = codes.scale_stride;
  codes.scale = codes.offset = nullptr;
  const int64_t lines = codes_first ? g.n : g.m;
  OperandCopy cut = copy_of(floats, g, lines, DType::bf16, parts, false, d);
  const OperandCopy exact = copy_of(codes, g, codes_first ? g.m : g.n, DType::bf16, 1, false, d);
  const auto* const first = static_cast<const bf16*>(cut.operand.data);
  for (int p = parts - 1; p >= 0; --p) {
    GemmArgs h = g;
    cut.operand.data = first + p * cut.part;
    h.a = codes_first ? exact.operand : cut.operand;
    h.b = codes_first ? cut.operand : exact.operand;
    h.beta = p == parts - 1 ? 0 : 1;
    gemm_kernel(h, d);
  }
  const bool offset = (codes_first ? g.a : g.b).offset != nullptr;
  if (!offset && !line_scale) return;
  PartsFinishArgs f{g, codes_first};
  Tensor memory[2];
  if (offset) f.sums = offset_sums(g, codes_first, memory, d);
  parts_finish(f, d);
}

}  // namespace lowbit::detail
