// Matrix products at the shapes of transformer training: ours beside oneDNN and OpenBLAS, alternating in one
// run.
//   gemm_bench [--threads 1,2] [--kind f32|int8] [--filter text] [--rounds 9] [--json file]
// Rates are GFLOP/s (Gop/s for int8): best of the rounds. Ratios are ours ÷ theirs, median over the rounds.
// With one thread the clock is the thread's CPU time, so a busy machine costs little; with more it is wall
// time.

#include <dlfcn.h>
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(LOWBIT_HAVE_DNNL)
#include <dnnl.hpp>
#endif

#include "tensor/core/thread_pool.h"
#include "tensor/engine/gemm_int8.h"
#include "tensor/engine/isa.h"

namespace {

using namespace lowbit;

double now(bool cpu) {
  timespec t;
  clock_gettime(cpu ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

/// C[b] (m × n) = op(A) · op(B); ta, tb: the operand is stored transposed.
struct Case {
  std::string name;
  int64_t batch, m, n, k;
  bool ta, tb;
};

void linear(std::vector<Case>& c, const std::string& name, int64_t t, int64_t k, int64_t n, bool backward) {
  c.push_back({name + " fwd", 1, t, n, k, false, true});
  if (!backward) return;
  c.push_back({name + " dgrad", 1, t, k, n, false, false});
  c.push_back({name + " wgrad", 1, n, k, t, true, false});
}

std::vector<Case> cases() {
  std::vector<Case> c;
  linear(c, "DeiT-T B8 qkv 1576x192x576", 1576, 192, 576, true);
  linear(c, "DeiT-T B8 proj 1576x192x192", 1576, 192, 192, true);
  linear(c, "DeiT-T B8 fc1 1576x192x768", 1576, 192, 768, true);
  linear(c, "DeiT-T B8 fc2 1576x768x192", 1576, 768, 192, true);
  c.push_back({"DeiT-T B8 scores 24x(197x64x197)", 24, 197, 197, 64, false, true});
  c.push_back({"DeiT-T B8 context 24x(197x197x64)", 24, 197, 64, 197, false, false});
  c.push_back({"DeiT-T B8 Pt.dO 24x(197x197x64)", 24, 197, 64, 197, true, false});
  linear(c, "DeiT-T B32 fc1 6304x192x768", 6304, 192, 768, false);
  linear(c, "DeiT-S B8 fc1 1576x384x1536", 1576, 384, 1536, false);
  c.push_back({"Swin-T B8 scores 1536x(49x32x49)", 1536, 49, 49, 32, false, true});
  c.push_back({"Swin-T B8 context 1536x(49x49x32)", 1536, 49, 32, 49, false, false});
  linear(c, "BERT B8 proj 1024x768x768", 1024, 768, 768, false);
  linear(c, "BERT B8 fc1 1024x768x3072", 1024, 768, 3072, false);
  linear(c, "BERT B8 fc2 1024x3072x768", 1024, 3072, 768, true);
  c.push_back({"BERT B8 scores 96x(128x64x128)", 96, 128, 128, 64, false, true});
  c.push_back({"BERT B8 context 96x(128x128x64)", 96, 128, 64, 128, false, false});
  return c;
}

// ---- peaks ----

#if defined(__x86_64__)
__attribute__((target("avx512f"))) double fma_peak() {
  __m512 s[12];
  for (auto& x : s) x = _mm512_set1_ps(1.0f);
  const __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(0.001f);
  const double t = now(true);
  constexpr int64_t n = 2000000;
  for (int64_t i = 0; i < n; ++i)
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) s[j] = _mm512_fmadd_ps(s[j], a, b);
  const double seconds = now(true) - t;
  float out = 0;
  for (auto& x : s) out += _mm512_cvtss_f32(x);
  asm volatile("" ::"x"(out));
  return double(n) * 12 * 32 / seconds * 1e-9;
}
__attribute__((target("avx512f,avx512vnni"))) double dot_peak() {
  __m512i s[12];
  for (auto& x : s) x = _mm512_setzero_si512();
  __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5);
  const double t = now(true);
  constexpr int64_t n = 2000000;
  for (int64_t i = 0; i < n; ++i) {
    asm volatile("" : "+v"(a), "+v"(b));
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) s[j] = _mm512_dpbusd_epi32(s[j], a, b);
  }
  const double seconds = now(true) - t;
  for (auto& x : s) a = _mm512_add_epi32(a, x);
  const int out = _mm512_cvtsi512_si32(a);
  asm volatile("" ::"r"(out));
  return double(n) * 12 * 128 / seconds * 1e-9;
}
__attribute__((target("avx2,fma"))) double fma_peak_256() {
  __m256 s[12];
  for (auto& x : s) x = _mm256_set1_ps(1.0f);
  const __m256 a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(0.001f);
  const double t = now(true);
  constexpr int64_t n = 2000000;
  for (int64_t i = 0; i < n; ++i)
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) s[j] = _mm256_fmadd_ps(s[j], a, b);
  const double seconds = now(true) - t;
  float out = 0;
  for (auto& x : s) out += _mm256_cvtss_f32(x);
  asm volatile("" ::"x"(out));
  return double(n) * 12 * 16 / seconds * 1e-9;
}
/// vpmaddubsw and an addition in 16 bits: what few-bit codes need without VNNI. In assembly, since the
/// compiler moves the product out of the loop or the sums into memory.
__attribute__((target("avx2"))) double dot_peak_256() {
  const double t = now(true);
  constexpr int64_t n = 2000000;
  for (int64_t i = 0; i < n; ++i) {
#define LOWBIT_STEP(sum) "vpmaddubsw %%ymm12, %%ymm13, %%ymm14\n vpaddw %%ymm14, %%" #sum ", %%" #sum "\n "
    asm volatile(LOWBIT_STEP(ymm0) LOWBIT_STEP(ymm1) LOWBIT_STEP(ymm2) LOWBIT_STEP(ymm3) LOWBIT_STEP(ymm4)
                     LOWBIT_STEP(ymm5) LOWBIT_STEP(ymm6) LOWBIT_STEP(ymm7) LOWBIT_STEP(ymm8) LOWBIT_STEP(ymm9)
                         LOWBIT_STEP(ymm10) LOWBIT_STEP(ymm11)
                 :
                 :
                 : "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8", "ymm9", "ymm10",
                   "ymm11", "ymm14");
#undef LOWBIT_STEP
  }
  return double(n) * 12 * 64 / (now(true) - t) * 1e-9;
}
#endif

// ---- peers ----

/// OpenBLAS, loaded at run time: the core type must be in the environment before.
class OpenBlas {
 public:
  OpenBlas() {
#if defined(LOWBIT_WITH_OPENBLAS)
    // Older releases do not know newer processors and take kernels of 128 bits.
    if (isa_supported(Isa::avx512)) setenv("OPENBLAS_CORETYPE", "SkylakeX", 0);
    void* lib = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
    if (!lib) return;
    gemm_ = reinterpret_cast<Gemm>(dlsym(lib, "cblas_sgemm"));
    set_threads_ = reinterpret_cast<void (*)(int)>(dlsym(lib, "openblas_set_num_threads"));
    if (const auto f = reinterpret_cast<char* (*)()>(dlsym(lib, "openblas_get_config"))) config = f();
#endif
  }
  bool found() const { return gemm_ && set_threads_; }
  void set_threads(int n) const { set_threads_(n); }
  void run(const Case& c, const float* a, const float* b, float* out) const {
    for (int64_t i = 0; i < c.batch; ++i)
      gemm_(101, c.ta ? 112 : 111, c.tb ? 112 : 111, int(c.m), int(c.n), int(c.k), 1, a + i * c.m * c.k,
            int(c.ta ? c.m : c.k), b + i * c.n * c.k, int(c.tb ? c.k : c.n), 0, out + i * c.m * c.n,
            int(c.n));
  }
  std::string config;

 private:
  using Gemm = void (*)(int, int, int, int, int, int, float, const float*, int, const float*, int, float,
                        float*, int);
  Gemm gemm_ = nullptr;
  void (*set_threads_)(int) = nullptr;
};

#if defined(LOWBIT_HAVE_DNNL)
/// A matmul primitive with plain layouts.
class DnnlMatmul {
 public:
  DnnlMatmul(const Case& c, dnnl::memory::data_type ta, dnnl::memory::data_type tb,
             dnnl::memory::data_type tc, const void* a, const void* b, void* out) {
    const auto strides = [](int64_t r, int64_t k, bool t) {
      return t ? dnnl::memory::dims{r * k, 1, r} : dnnl::memory::dims{r * k, k, 1};
    };
    const dnnl::memory::desc da({c.batch, c.m, c.k}, ta, strides(c.m, c.k, c.ta));
    const dnnl::memory::desc db({c.batch, c.k, c.n}, tb, strides(c.k, c.n, c.tb));
    const dnnl::memory::desc dc({c.batch, c.m, c.n}, tc, strides(c.m, c.n, false));
    primitive_ = dnnl::matmul(dnnl::matmul::primitive_desc(dnnl::matmul::desc(da, db, dc), engine_));
    args_ = {{DNNL_ARG_SRC, dnnl::memory(da, engine_, const_cast<void*>(a))},
             {DNNL_ARG_WEIGHTS, dnnl::memory(db, engine_, const_cast<void*>(b))},
             {DNNL_ARG_DST, dnnl::memory(dc, engine_, out)}};
  }
  void run() {
    primitive_.execute(stream_, args_);
    stream_.wait();
  }

 private:
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  dnnl::matmul primitive_;
  std::unordered_map<int, dnnl::memory> args_;
};

std::string dnnl_name() {
  const auto v = dnnl::version();
  return str_cat("oneDNN ", v->major, ".", v->minor, ".", v->patch, ", isa ",
                 int(dnnl::get_effective_cpu_isa()), " (0x3f7 and above use AMX)");
}
void dnnl_threads(int n) {
  if (const auto f = reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"))) f(n);
}
#endif

// ---- measuring ----

struct Contender {
  std::string name;
  std::function<void()> run;
  std::vector<double> seconds;
  double best() const { return *std::min_element(seconds.begin(), seconds.end()); }
};

/// Alternates all contenders; each round runs one for at least 4 ms.
void measure(std::vector<Contender>& all, int rounds, bool cpu_clock) {
  for (auto& c : all) c.run(), c.run();
  for (int r = 0; r < rounds; ++r)
    for (auto& c : all) {
      const double t = now(cpu_clock);
      int64_t n = 0;
      do {
        c.run();
        ++n;
      } while (now(cpu_clock) - t < 4e-3);
      c.seconds.push_back((now(cpu_clock) - t) / double(n));
    }
}

double ratio(const Contender& ours, const Contender& theirs) {
  std::vector<double> r;
  for (size_t i = 0; i < ours.seconds.size(); ++i) r.push_back(theirs.seconds[i] / ours.seconds[i]);
  std::nth_element(r.begin(), r.begin() + int64_t(r.size() / 2), r.end());
  return r[r.size() / 2];
}

template <class T, class D>
Tensor random_tensor(const Shape& s, DType t, D distribution) {
  std::mt19937 gen(1);
  Tensor x = Tensor::empty(s, t);
  T* p = x.data<T>();
  for (int64_t i = 0; i < x.numel(); ++i) p[i] = T(distribution(gen));
  return x;
}

Shape stored(const Case& c, int64_t r, int64_t k, bool t) {
  return t ? Shape{c.batch, k, r} : Shape{c.batch, r, k};
}
GemmInput seen(const GemmInput& x, bool t) { return t ? x.t() : x; }

nlohmann::json report(const Case& c, const char* kind, const std::vector<Contender>& all, double peak) {
  const double work = 2e-9 * double(c.batch * c.m * c.n * c.k);
  std::printf("%-36s %-5s", c.name.c_str(), kind);
  nlohmann::json j{{"case", c.name}, {"kind", kind}, {"isa", isa_name(current_isa())}};
  j["gflops"] = work / all[0].best();  // ours, for tools/bench_compare
  for (size_t i = 0; i < all.size(); ++i) {
    const double rate = work / all[i].best();
    std::printf("  %s %6.1f", all[i].name.c_str(), rate);
    j["rate"][all[i].name] = rate;
    if (i > 0) {
      std::printf(" (x%.2f)", ratio(all[0], all[i]));
      j["ratio"][all[i].name] = ratio(all[0], all[i]);
    }
  }
  std::printf("  %3.0f%% of peak\n", 100 * work / all[0].best() / peak);
  std::fflush(stdout);
  return j;
}

struct Bench {
  int threads = 1, rounds = 9;
  double peak_f32 = 0, peak_int8 = 0;
  OpenBlas blas;
  nlohmann::json results = nlohmann::json::array();

  void add(nlohmann::json j) {
    j["threads"] = threads;
    results.push_back(std::move(j));
  }

  void floats(const Case& c) {
    const Tensor a =
        random_tensor<float>(stored(c, c.m, c.k, c.ta), DType::f32, std::normal_distribution<float>());
    const Tensor b =
        random_tensor<float>(stored(c, c.k, c.n, c.tb), DType::f32, std::normal_distribution<float>());
    Tensor y = Tensor::zeros({c.batch, c.m, c.n}), z = Tensor::zeros({c.batch, c.m, c.n});
    const float *pa = a.data_const<float>(), *pb = b.data_const<float>();
    float* pz = z.data<float>();
    std::vector<Contender> all{{"ours", [&] { gemm(y, seen(a, c.ta), seen(b, c.tb)); }, {}}};
#if defined(LOWBIT_HAVE_DNNL)
    using T = dnnl::memory::data_type;
    DnnlMatmul dnnl(c, T::f32, T::f32, T::f32, pa, pb, pz);
    all.push_back({"onednn", [&] { dnnl.run(); }, {}});
#endif
    if (blas.found()) all.push_back({"openblas", [&] { blas.run(c, pa, pb, pz); }, {}});
    measure(all, rounds, threads == 1);
    add(report(c, "f32", all, peak_f32));
  }

  void integers(const Case& c) {
    std::uniform_int_distribution<int> unsigned4(0, 15), signed4(-8, 7);
    Coded a, b;
    a.codes = random_tensor<uint8_t>(stored(c, c.m, c.k, c.ta), DType::u8, unsigned4);
    b.codes = random_tensor<int8_t>(stored(c, c.k, c.n, c.tb), DType::i8, signed4);
    a.scale = b.scale = Tensor::scalar(0.1f);
    a.lo = 0, a.hi = 15, b.lo = -8, b.hi = 7;
    Tensor y = Tensor::zeros({c.batch, c.m, c.n}, DType::i32),
           z = Tensor::zeros({c.batch, c.m, c.n}, DType::i32);
    Tensor f = Tensor::zeros({c.batch, c.m, c.n});
    const GemmInput ia = seen(a, c.ta), ib = seen(b, !c.tb);
    std::vector<Contender> all{{"ours", [&] { gemm_int8(y, ia, ib); }, {}}};
#if defined(LOWBIT_HAVE_DNNL)
    using T = dnnl::memory::data_type;
    DnnlMatmul dnnl(c, T::u8, T::s8, T::s32, a.codes.view().data, b.codes.view().data, z.mutable_view().data);
    all.push_back({"onednn", [&] { dnnl.run(); }, {}});
#endif
    all.push_back({"coded_gemm", [&] { coded_gemm(f, ia, ib); }, {}});
    measure(all, rounds, threads == 1);
    if (all.size() == 3 && !equal_bits(y, z)) std::printf("ERROR: %s differs from oneDNN\n", c.name.c_str());
    add(report(c, "int8", all, peak_int8));
  }
};

}  // namespace

int main(int argc, char** argv) {
  std::map<std::string, std::string> options{
      {"--threads", "1,2"}, {"--kind", ""}, {"--filter", ""}, {"--rounds", "9"}, {"--json", ""}};
  for (int i = 1; i < argc; ++i) {
    if (!options.count(argv[i]) || i + 1 == argc) {
      std::fprintf(
          stderr,
          "usage: gemm_bench [--threads 1,2] [--kind f32|int8] [--filter text] [--rounds 9] [--json file]\n");
      return 2;
    }
    const char* name = argv[i++];
    options[name] = argv[i];
  }
  Bench bench;
  bench.rounds = std::max(1, std::atoi(options["--rounds"].c_str()));
  std::printf("instruction set %s; openblas: %s\n", isa_name(current_isa()),
              bench.blas.found() ? bench.blas.config.c_str() : "not found");
#if defined(LOWBIT_HAVE_DNNL)
  std::printf("%s\n", dnnl_name().c_str());
#else
  std::printf("oneDNN: not built in\n");
#endif
  std::string list = options["--threads"] + ",";
  for (size_t at = 0, end; (end = list.find(',', at)) != std::string::npos; at = end + 1) {
    bench.threads = std::max(1, std::atoi(list.substr(at, end - at).c_str()));
    set_threads(bench.threads);
    if (bench.blas.found()) bench.blas.set_threads(bench.threads);
#if defined(LOWBIT_HAVE_DNNL)
    dnnl_threads(bench.threads);
#endif
#if defined(__x86_64__)
    const bool wide = isa_supported(Isa::avx512);
    for (int i = 0; (wide || isa_supported(Isa::avx2)) && i < 5; ++i) {
      bench.peak_f32 = std::max(bench.peak_f32, (wide ? fma_peak() : fma_peak_256()) * bench.threads);
      bench.peak_int8 = std::max(bench.peak_int8, (wide ? dot_peak() : dot_peak_256()) * bench.threads);
    }
#endif
    std::printf(
        "\n%d thread(s); peak of one core times threads: f32 %.0f GFLOP/s, int8 %.0f Gop/s (%s-bit)\n",
        bench.threads, bench.peak_f32, bench.peak_int8, isa_supported(Isa::avx512) ? "512" : "256");

    for (const Case& c : cases())
      if (c.name.find(options["--filter"]) != std::string::npos) {
        if (options["--kind"] != "int8") bench.floats(c);
        if (options["--kind"] != "f32") bench.integers(c);
      }
  }
  if (!options["--json"].empty())
    std::ofstream(options["--json"]) << nlohmann::json{{"isa", isa_name(current_isa())},
                                                       {"peak",
                                                        {{"f32", bench.peak_f32}, {"int8", bench.peak_int8}}},
                                                       {"results", bench.results}}
                                            .dump(1)
                                     << "\n";
  return 0;
}
