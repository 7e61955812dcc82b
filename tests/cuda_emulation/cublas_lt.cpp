// cuBLASLt of the emulated device; see cublasLt.h.

#include <cublasLt.h>

#include <cmath>
#include <cstring>

#include "tensor/hd/half.h"

struct EmulatedCublas {
  bool made = true;
};
struct EmulatedProduct {
  cublasComputeType_t compute;
  int32_t trans_a = CUBLAS_OP_N, trans_b = CUBLAS_OP_N, epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  void* bias = nullptr;  // of the type of the result
  bool sums() const { return epilogue == CUBLASLT_EPILOGUE_BGRADA || epilogue == CUBLASLT_EPILOGUE_BGRADB; }
};
struct EmulatedMatrix {
  cudaDataType_t type;
  int64_t rows, cols, ld, step = 0;
  int32_t batch = 1;
};
struct EmulatedPreference {
  uint64_t workspace = 0;
  uint32_t schemes = 7, align[4] = {256, 256, 256, 256};
};

namespace {

constexpr uint64_t kAlgorithm = 0x10b17;  // of an algorithm that came from the heuristic
constexpr size_t kWorkspace = 4096;       // what the algorithm wants
constexpr int64_t kSmallestSums = 4;      // shortest contraction that is added up in the epilogue

template <class T>
cublasStatus_t take(T& to, const void* value, size_t bytes) {
  if (!value || bytes != sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&to, value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}

/// Extents after the transpositions; why the call is refused, or success.
cublasStatus_t check(const EmulatedProduct& d, const EmulatedMatrix& a, const EmulatedMatrix& b,
                     const EmulatedMatrix& c, int64_t& k) {
  const bool ta = d.trans_a == CUBLAS_OP_T, tb = d.trans_b == CUBLAS_OP_T;
  const int64_t m = ta ? a.cols : a.rows, n = tb ? b.rows : b.cols;
  k = ta ? a.rows : a.cols;
  if (c.rows != m || c.cols != n || (tb ? b.cols : b.rows) != k) return CUBLAS_STATUS_INVALID_VALUE;
  for (const EmulatedMatrix* x : {&a, &b, &c})
    if (x->rows <= 0 || x->cols <= 0 || x->ld < x->rows || x->batch != c.batch || x->batch < 1)
      return CUBLAS_STATUS_INVALID_VALUE;
  if (c.batch > 1 && c.step < c.ld * (c.cols - 1) + c.rows) {  // columns of batches may interleave
    if (c.step < c.rows || c.ld < c.step * (c.batch - 1) + c.rows) return CUBLAS_STATUS_INVALID_VALUE;
  }
  if (a.type != b.type || (c.type != CUDA_R_32F && c.type != a.type)) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (c.type != CUDA_R_32F && d.sums()) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (d.compute == CUBLAS_COMPUTE_32F_FAST_TF32 && a.type != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (d.epilogue != CUBLASLT_EPILOGUE_DEFAULT && !d.bias) return CUBLAS_STATUS_INVALID_VALUE;
  // Not for every form: the caller must have another way.
  if (d.sums() && (c.batch > 1 || k < kSmallestSums)) return CUBLAS_STATUS_NOT_SUPPORTED;
  return CUBLAS_STATUS_SUCCESS;
}

bool aligned(const void* p, const EmulatedMatrix& m, uint32_t to) {
  const uint64_t size = m.type == CUDA_R_32F ? 4 : 2;
  return (reinterpret_cast<uintptr_t>(p) | uint64_t(m.ld) * size |
          (m.batch > 1 ? uint64_t(m.step) * size : 0)) %
             to ==
         0;
}

struct Product {
  EmulatedProduct d;
  EmulatedMatrix la, lb, lc;
  const void *a, *b;
  void* c;
  float alpha, beta;
  int64_t k;

  float value(const EmulatedMatrix& l, const void* data, int batch, int64_t row, int64_t col) const {
    const int64_t i = batch * l.step + col * l.ld + row;
    if (l.type == CUDA_R_16BF) return static_cast<const lowbit::bf16*>(data)[i];
    const float x = static_cast<const float*>(data)[i];
    if (d.compute != CUBLAS_COMPUTE_32F_FAST_TF32) return x;
    return lowbit::bits_float(lowbit::float_bits(x) & ~0x1fffu);
  }
  void sums() const {
    const bool of_a = d.epilogue == CUBLASLT_EPILOGUE_BGRADA;
    const EmulatedMatrix& l = of_a ? la : lb;
    const void* const data = of_a ? a : b;
    const bool by_rows = of_a ? d.trans_a == CUBLAS_OP_N : d.trans_b == CUBLAS_OP_T;  // one sum for each row
    for (int64_t i = 0; i < (of_a ? lc.rows : lc.cols); ++i) {
      float lanes[2] = {};
      for (int64_t t = 0; t < k; ++t) lanes[t % 2] += value(l, data, 0, by_rows ? i : t, by_rows ? t : i);
      static_cast<float*>(d.bias)[i] = lanes[0] + lanes[1];
    }
  }
  template <class C>
  void run() const {
    if (d.sums()) sums();
    const bool ta = d.trans_a == CUBLAS_OP_T, tb = d.trans_b == CUBLAS_OP_T;
    for (int batch = 0; batch < lc.batch; ++batch)
      for (int64_t j = 0; j < lc.cols; ++j)
        for (int64_t i = 0; i < lc.rows; ++i) {
          float lanes[4] = {};
          for (int64_t t = 0; t < k; ++t)
            lanes[t % 4] +=
                value(la, a, batch, ta ? t : i, ta ? i : t) * value(lb, b, batch, tb ? j : t, tb ? t : j);
          C& to = static_cast<C*>(c)[batch * lc.step + j * lc.ld + i];
          float y = alpha * ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3]));
          if (beta != 0) y += beta * float(to);
          if (d.epilogue == CUBLASLT_EPILOGUE_BIAS) y += float(static_cast<const C*>(d.bias)[i]);
          to = C(y);
        }
  }
};

}  // namespace

const char* cublasLtGetStatusString(cublasStatus_t s) {
  switch (s) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    default:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
  }
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t* h) { return *h = new EmulatedCublas, CUBLAS_STATUS_SUCCESS; }

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* d, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  if (scale != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
  *d = new EmulatedProduct{.compute = compute};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t what,
                                              const void* value, size_t bytes) {
  switch (what) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return take(d->trans_a, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return take(d->trans_b, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return take(d->epilogue, value, bytes);
    default:
      return take(d->bias, value, bytes);
  }
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* l, cudaDataType_t type, uint64_t rows,
                                          uint64_t cols, int64_t ld) {
  *l = new EmulatedMatrix{.type = type, .rows = int64_t(rows), .cols = int64_t(cols), .ld = ld};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l,
                                                cublasLtMatrixLayoutAttribute_t what, const void* value,
                                                size_t bytes) {
  return what == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT ? take(l->batch, value, bytes)
                                                    : take(l->step, value, bytes);
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* p) {
  return *p = new EmulatedPreference, CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                                    cublasLtMatmulPreferenceAttributes_t what,
                                                    const void* value, size_t bytes) {
  if (what == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) return take(p->workspace, value, bytes);
  if (what == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK) return take(p->schemes, value, bytes);
  return take(p->align[what - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES], value, bytes);
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) {
  delete p;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t h, cublasLtMatmulDesc_t d,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t to,
                                              cublasLtMatmulPreference_t p, int requested,
                                              cublasLtMatmulHeuristicResult_t results[], int* count) {
  *count = 0;
  if (!h) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (c != to || requested < 1) return CUBLAS_STATUS_INVALID_VALUE;
  int64_t k;
  if (const cublasStatus_t s = check(*d, *a, *b, *c, k); s != CUBLAS_STATUS_SUCCESS) return s;
  if (p->workspace < kWorkspace || (p->schemes & 5) != 0)  // in place or in the type of C: not for f32 sums
    return CUBLAS_STATUS_NOT_SUPPORTED;
  results[0] = {};
  results[0].algo.data[0] = kAlgorithm;
  for (int i = 0; i < 4; ++i) results[0].algo.data[1 + i] = p->align[i];
  results[0].workspaceSize = kWorkspace;
  *count = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t h, cublasLtMatmulDesc_t d, const void* alpha, const void* a,
                              cublasLtMatrixLayout_t la, const void* b, cublasLtMatrixLayout_t lb,
                              const void* beta, const void* c, cublasLtMatrixLayout_t lc, void* to,
                              cublasLtMatrixLayout_t lto, const cublasLtMatmulAlgo_t* algo, void* workspace,
                              size_t workspace_bytes, cudaStream_t stream) {
  if (!h) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (!alpha || !beta || c != to || lc != lto || !algo || algo->data[0] != kAlgorithm || !workspace ||
      workspace_bytes < kWorkspace)
    return CUBLAS_STATUS_INVALID_VALUE;
  Product p{*d, *la, *lb, *lc, a, b, to, 0, 0, 0};
  if (const cublasStatus_t s = check(p.d, p.la, p.lb, p.lc, p.k); s != CUBLAS_STATUS_SUCCESS) return s;
  if (!aligned(a, p.la, uint32_t(algo->data[1])) || !aligned(b, p.lb, uint32_t(algo->data[2])) ||
      !aligned(to, p.lc, uint32_t(algo->data[4])))
    return CUBLAS_STATUS_NOT_SUPPORTED;
  std::memcpy(&p.alpha, alpha, sizeof p.alpha);
  std::memcpy(&p.beta, beta, sizeof p.beta);
  cuda_emulation::launch(dim3(1), dim3(1), 0, stream,
                         [p] { p.lc.type == CUDA_R_32F ? p.run<float>() : p.run<lowbit::bf16>(); });
  return CUBLAS_STATUS_SUCCESS;
}
