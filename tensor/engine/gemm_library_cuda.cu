#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <bit>
#include <map>
#include <mutex>
#include <utility>

#include "tensor/core/allocator.h"
#include "tensor/core/cuda_runtime.cuh"
#include "tensor/engine/gemm_library.h"
#include "tensor/engine/gemm_pack.h"

namespace lowbit {
namespace {

constexpr size_t kWorkBytes = size_t(32) << 20;

void check(cublasStatus_t s) {
  if (s != CUBLAS_STATUS_SUCCESS)
    fail(ErrorKind::cuda, "gemm", str_cat("cuBLASLt: ", cublasLtGetStatusString(s)));
}

using Lines = detail::OperandLines;

/// What an algorithm depends on. The library's matrices are column-major: its D is our Cᵀ, its A our B.
struct Form {
  int64_t m, n, k, batch;
  Lines a, b;
  int64_t c_pitch, a_step, b_step, c_step;  // steps from batch to batch
  int64_t a_align, b_align, c_align;        // bytes
  cublasLtEpilogue_t epilogue;
  int64_t vector_align;  // of the epilogue's vector
  bool bf16, tf32, c_bf16;
  auto key() const {
    return std::array<int64_t, 20>{
        m,      n,      k,       batch,   a.along_k, a.pitch,  b.along_k,    b.pitch, c_pitch, a_step,
        b_step, c_step, a_align, b_align, c_align,   epilogue, vector_align, bf16,    tf32,    c_bf16};
  }
};

/// Descriptors and the algorithm of a form; `found` is false where the library has none.
struct Plan {
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
  cublasLtMatmulAlgo_t algorithm{};
  bool found = false;
};

template <class T>
void set(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t what, T value) {
  check(cublasLtMatmulDescSetAttribute(d, what, &value, sizeof value));
}
template <class T>
void set(cublasLtMatmulPreference_t p, cublasLtMatmulPreferenceAttributes_t what, T value) {
  check(cublasLtMatmulPreferenceSetAttribute(p, what, &value, sizeof value));
}

cublasLtMatrixLayout_t matrix(bool is_bf16, int64_t rows, int64_t cols, int64_t pitch, int64_t batch,
                              int64_t step) {
  cublasLtMatrixLayout_t l = nullptr;
  check(cublasLtMatrixLayoutCreate(&l, is_bf16 ? CUDA_R_16BF : CUDA_R_32F, uint64_t(rows), uint64_t(cols),
                                   pitch));
  const int32_t count = int32_t(batch);
  check(cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count));
  check(cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &step, sizeof step));
  return l;
}

/// An operand with `own` in its own dimension; its lines are the columns of the library's matrix.
cublasLtMatrixLayout_t matrix(const Lines& l, const Form& f, int64_t own, int64_t step) {
  return matrix(f.bf16, l.along_k ? f.k : own, l.along_k ? own : f.k, l.pitch, f.batch, step);
}

Plan make_plan(cublasLtHandle_t handle, const Form& f, const void* vector) {
  Plan p;
  check(cublasLtMatmulDescCreate(&p.product, f.tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F,
                                 CUDA_R_32F));
  set(p.product, CUBLASLT_MATMUL_DESC_TRANSA, f.b.along_k ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(p.product, CUBLASLT_MATMUL_DESC_TRANSB, f.a.along_k ? CUBLAS_OP_N : CUBLAS_OP_T);
  set(p.product, CUBLASLT_MATMUL_DESC_EPILOGUE, f.epilogue);
  // The heuristic looks at its alignment.
  if (vector) set(p.product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, vector);
  p.a = matrix(f.b, f, f.n, f.b_step);
  p.b = matrix(f.a, f, f.m, f.a_step);
  p.c = matrix(f.c_bf16, f.n, f.m, f.c_pitch, f.batch, f.c_step);
  cublasLtMatmulPreference_t wish = nullptr;
  check(cublasLtMatmulPreferenceCreate(&wish));
  set(wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkBytes);
  set(wish, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  set(wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, uint32_t(f.b_align));
  set(wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, uint32_t(f.a_align));
  set(wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, uint32_t(f.c_align));
  set(wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, uint32_t(f.c_align));
  cublasLtMatmulHeuristicResult_t best{};
  int count = 0;
  const cublasStatus_t s =
      cublasLtMatmulAlgoGetHeuristic(handle, p.product, p.a, p.b, p.c, p.c, wish, 1, &best, &count);
  check(cublasLtMatmulPreferenceDestroy(wish));
  if (s != CUBLAS_STATUS_NOT_SUPPORTED) check(s);
  p.found = s == CUBLAS_STATUS_SUCCESS && count > 0 && best.state == CUBLAS_STATUS_SUCCESS;
  p.algorithm = best.algo;
  return p;
}

/// The library on one device. Descriptors live as long as the program.
struct Library {
  explicit Library(Stream s) {
    cuda::DeviceScope scope(s.device.index);
    check(cublasLtCreate(&handle));
    work = allocator(s.device).allocate(kWorkBytes, s);
  }
  const Plan& plan(const Form& f, const void* vector) {
    const auto [at, fresh] = plans.try_emplace(f.key());
    if (fresh) {
      try {
        at->second = make_plan(handle, f, vector);
      } catch (...) {
        plans.erase(at);
        throw;
      }
    }
    return at->second;
  }
  cublasLtHandle_t handle = nullptr;
  void* work = nullptr;
  std::map<decltype(Form{}.key()), Plan> plans;
};

std::mutex mutex;  // of everything below: a plan's descriptors carry the bias or the sums of the call

Library& library(Stream s) {
  static auto& all = *new std::map<int, Library>;
  return all.try_emplace(s.device.index, s).first->second;
}

/// The largest power of two up to 256 that divides every number.
int64_t alignment(std::initializer_list<uint64_t> bytes) {
  uint64_t all = 256;
  for (const uint64_t b : bytes) all |= b;
  return int64_t(all & ~(all - 1));
}

const char* at(const void* data, int64_t bytes) { return static_cast<const char*>(data) + bytes; }

}  // namespace

bool detail::gemm_library(const GemmArgs& args, Stream stream) {
  GemmArgs g = args;
  // The library's B is our A.
  cublasLtEpilogue_t epilogue = g.bias     ? CUBLASLT_EPILOGUE_BIAS
                                : g.a_sums ? CUBLASLT_EPILOGUE_BGRADB
                                           : CUBLASLT_EPILOGUE_DEFAULT;
  if (g.c_col != 1 && g.c_row == 1 && !g.bias) {  // Cᵀ = Bᵀ·Aᵀ
    std::swap(g.a, g.b);
    std::swap(g.m, g.n);
    std::swap(g.c_row, g.c_col);
    if (g.a_sums) epilogue = CUBLASLT_EPILOGUE_BGRADA;
  }
  fold_batches(g);
  if (g.m == 1) g.c_row = std::max(g.c_row, g.n);
  if (g.c_col != 1 || g.c_row < g.n || g.batch[0] * g.batch[1] * g.batch[2] * g.m * g.n * g.k == 0)
    return false;
  const auto a = library_lines(g.a, g.m, g.k), b = library_lines(g.b, g.n, g.k);
  if (!a || !b) return false;
  LOWBIT_ASSERT(g.a.dtype == g.b.dtype && !g.a.scale && !g.b.scale);  // prepare_operands

  // The longest batch dimension is the library's, the others are loops.
  const int inner = int(std::max_element(g.batch, g.batch + kMaxBatchDims) - g.batch);
  const int64_t size = int64_t(dtype_size(g.a.dtype)), c_size = int64_t(dtype_size(g.c_dtype)),
                step[3] = {g.a.stride.batch[inner], g.b.stride.batch[inner], g.c_batch[inner]};
  const auto aligned = [&](const void* p, int64_t each, const int64_t(&batch)[kMaxBatchDims], int64_t pitch) {
    return alignment({reinterpret_cast<uintptr_t>(p), uint64_t(batch[0] * each), uint64_t(batch[1] * each),
                      uint64_t(batch[2] * each), uint64_t(pitch * each)});
  };
  const void* const vector = g.bias ? g.bias : g.a_sums;
  const Form form{g.m,
                  g.n,
                  g.k,
                  g.batch[inner],
                  *a,
                  *b,
                  g.c_row,
                  step[0],
                  step[1],
                  step[2],
                  aligned(g.a.data, size, g.a.stride.batch, a->pitch),
                  aligned(g.b.data, size, g.b.stride.batch, b->pitch),
                  aligned(g.c, c_size, g.c_batch, g.c_row),
                  epilogue,
                  vector ? alignment({reinterpret_cast<uintptr_t>(vector)}) : 0,
                  g.a.dtype == DType::bf16,
                  g.tf32 && g.a.dtype == DType::f32,
                  g.c_dtype == DType::bf16};
  std::unique_lock lock(mutex);
  Library& lib = library(stream);
  const Plan& p = lib.plan(form, vector);
  if (!p.found && g.a_sums) {  // the product alone
    lock.unlock();
    GemmArgs rest = args;
    rest.a_sums = nullptr;
    return gemm_library(rest, stream);
  }
  if (!p.found) return false;
  if (vector) set(p.product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, vector);
  const float alpha = float(g.alpha), beta = float(g.beta);
  const int64_t loops[2] = {inner == 0 ? g.batch[1] : g.batch[0], inner == 2 ? g.batch[1] : g.batch[2]};
  const int dims[2] = {inner == 0 ? 1 : 0, inner == 2 ? 1 : 2};
  for (int64_t i = 0; i < loops[0]; ++i)
    for (int64_t j = 0; j < loops[1]; ++j) {
      const auto offset = [&](const int64_t(&batch)[kMaxBatchDims]) {
        return i * batch[dims[0]] + j * batch[dims[1]];
      };
      char* const c = static_cast<char*>(g.c) + offset(g.c_batch) * c_size;
      cuda::account("gemm", stream);
      check(cublasLtMatmul(lib.handle, p.product, &alpha, at(g.b.data, offset(g.b.stride.batch) * size), p.a,
                           at(g.a.data, offset(g.a.stride.batch) * size), p.b, &beta, c, p.c, c, p.c,
                           &p.algorithm, lib.work, kWorkBytes, cuda::handle(stream)));
    }
  if (g.a_sums) *g.summed = true;
  return true;
}

}  // namespace lowbit
