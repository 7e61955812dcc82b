// Ours on a GPU beside NVIDIA's libraries, at the shapes of training.
//   library_bench [--batch 64] [--seconds 0.2]
// Products: ours on integers beside cuBLASLt on int8, bf16, tf32 and f32. One JSON line a product: rates in
// Tflop/s (Top/s for int8), of forward products C = A · Bᵀ with the operands in place. Ours includes scales
// and bias and writes f32; cuBLASLt on int8 writes int32 sums and nothing else. Left out where the library
// has no algorithm. Attention beside cuDNN's: library_attention.cpp.

#include <cublasLt.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>

#include "benchmarks/library_bench.h"
#include "tensor/core/backend.h"
#include "tensor/core/cuda_runtime.cuh"
#include "tensor/engine/gemm_int8.h"

namespace {

using namespace lowbit;
using bench::kGpu, bench::timed;

constexpr size_t kWorkBytes = size_t(32) << 20;

struct Shape3 {
  const char* name;
  int64_t rows, k, n;  // rows: of one image or sequence
};
constexpr Shape3 kShapes[] = {{"DeiT-T qkv", 197, 192, 576}, {"DeiT-T fc1", 197, 192, 768},
                              {"DeiT-T fc2", 197, 768, 192}, {"DeiT-S fc1", 197, 384, 1536},
                              {"BERT proj", 128, 768, 768},  {"BERT fc1", 128, 768, 3072},
                              {"BERT fc2", 128, 3072, 768}};

void check(cublasStatus_t s) {
  if (s != CUBLAS_STATUS_SUCCESS) fail(ErrorKind::cuda, "library_bench", cublasLtGetStatusString(s));
}

/// C[m, n] int32 = A[m, k] · B[n, k]ᵀ of int8; the library's matrices are column-major.
class Int8Product {
 public:
  Int8Product(int64_t m, int64_t n, int64_t k)
      : a_(Tensor::full({m, k}, 3, DType::i8, kGpu)),
        b_(Tensor::full({n, k}, 5, DType::i8, kGpu)),
        c_(Tensor::empty({m, n}, DType::i32, kGpu)),
        work_(Tensor::empty({int64_t(kWorkBytes)}, DType::u8, kGpu)) {
    check(cublasLtCreate(&handle_));
    check(cublasLtMatmulDescCreate(&product_, CUBLAS_COMPUTE_32I, CUDA_R_32I));
    const cublasOperation_t t = CUBLAS_OP_T;
    check(cublasLtMatmulDescSetAttribute(product_, CUBLASLT_MATMUL_DESC_TRANSA, &t, sizeof t));
    check(cublasLtMatrixLayoutCreate(&lb_, CUDA_R_8I, uint64_t(k), uint64_t(n), k));
    check(cublasLtMatrixLayoutCreate(&la_, CUDA_R_8I, uint64_t(k), uint64_t(m), k));
    check(cublasLtMatrixLayoutCreate(&lc_, CUDA_R_32I, uint64_t(n), uint64_t(m), n));
    cublasLtMatmulPreference_t wish = nullptr;
    check(cublasLtMatmulPreferenceCreate(&wish));
    check(cublasLtMatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &kWorkBytes,
                                               sizeof kWorkBytes));
    cublasLtMatmulHeuristicResult_t best{};
    int count = 0;
    found_ = cublasLtMatmulAlgoGetHeuristic(handle_, product_, lb_, la_, lc_, lc_, wish, 1, &best, &count) ==
                 CUBLAS_STATUS_SUCCESS &&
             count > 0;
    algorithm_ = best.algo;
    check(cublasLtMatmulPreferenceDestroy(wish));
  }
  ~Int8Product() {
    cublasLtMatrixLayoutDestroy(la_), cublasLtMatrixLayoutDestroy(lb_), cublasLtMatrixLayoutDestroy(lc_);
    cublasLtMatmulDescDestroy(product_), cublasLtDestroy(handle_);
  }
  bool found() const { return found_; }
  void run() {
    const int32_t one = 1, zero = 0;
    check(cublasLtMatmul(handle_, product_, &one, b_.view().data, lb_, a_.view().data, la_, &zero,
                         c_.view().data, lc_, c_.view().data, lc_, &algorithm_, work_.view().data, kWorkBytes,
                         cuda::handle(current_stream(kGpu))));
  }

 private:
  Tensor a_, b_, c_, work_;
  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulDesc_t product_ = nullptr;
  cublasLtMatrixLayout_t la_ = nullptr, lb_ = nullptr, lc_ = nullptr;
  cublasLtMatmulAlgo_t algorithm_{};
  bool found_ = false;
};

Coded codes(const Shape& s, DType t, int lo, int hi) {
  Coded c;
  c.codes = Tensor::full(s, 3, t, kGpu), c.lo = lo, c.hi = hi;
  c.scale = Tensor::full({1}, 0.1, DType::f32, kGpu);
  return c;
}

void measure(const Shape3& s, int64_t batch, double seconds) {
  const int64_t m = batch * s.rows;
  const double work = 2e-12 * double(m) * double(s.n) * double(s.k);
  const Tensor a = Tensor::full({m, s.k}, 0.3, DType::f32, kGpu),
               b = Tensor::full({s.n, s.k}, 0.7, DType::f32, kGpu), bias = Tensor::zeros({s.n}).to(kGpu);
  const Tensor a16 = a.cast(DType::bf16), b16 = b.cast(DType::bf16);
  Tensor c = Tensor::empty({m, s.n}, DType::f32, kGpu);
  std::printf("{\"product\": \"%s\", \"rows\": %lld, \"k\": %lld, \"n\": %lld", s.name, (long long)m,
              (long long)s.k, (long long)s.n);
  const auto row = [&](const char* name, const std::function<void()>& f) {
    std::printf(", \"%s\": %.2f", name, work / timed(seconds, f));
  };
  const auto floats = [&](const Tensor& x, const Tensor& y, const GemmMode& mode) {
    return [&, mode] { gemm(c, x, GemmInput(y).t(), bias, 1, 0, mode); };
  };
  const Coded ca = codes({m, s.k}, DType::u8, 0, 15), cb = codes({s.n, s.k}, DType::i8, -8, 7);
  row("int8", [&] { coded_gemm(c, ca, cb, bias); });
  row("f32", floats(a, b, {}));
  row("cublas_f32", floats(a, b, {.library = true}));
  row("cublas_tf32", floats(a, b, {.inputs = MathMode::tf32, .library = true}));
  row("cublas_bf16", floats(a16, b16, {.inputs = MathMode::bf16, .library = true}));
  if (Int8Product p(m, s.n, s.k); p.found()) row("cublas_int8", [&] { p.run(); });
  std::printf("}\n");
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  int64_t batch = 64;
  double seconds = 0.2;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (!std::strcmp(argv[i], "--batch")) batch = std::atoll(argv[i + 1]);
    if (!std::strcmp(argv[i], "--seconds")) seconds = std::atof(argv[i + 1]);
  }
  if (const std::string why = cuda_unusable(); !why.empty()) {
    std::fprintf(stderr, "library_bench: %s\n", why.c_str());
    return 1;
  }
  for (const Shape3& s : kShapes) measure(s, batch, seconds);
  bench::measure_attention(batch, seconds);
}
