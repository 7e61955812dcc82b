// Gradients of quantized products, in each mode of Context::backward: error against float64 and rate.
//   LOWBIT_THREADS=1 gradient_bench       a line per shape, kind of gradient and instruction set, as JSON
// The error is the largest over the outputs looked at, divided by the largest output. "gauss": normal
// gradients; "heavy": normal times e^(1.5·normal), a few values dominate every row.

#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>

#include "tensor/engine/gemm.h"
#include "tensor/engine/isa.h"

namespace lowbit {
namespace {

double cpu_seconds() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

template <class F>
double best_of(int rounds, F f) {
  double best = INFINITY;
  for (int i = 0; i <= rounds; ++i) {
    const double t = cpu_seconds();
    f();
    if (i) best = std::min(best, cpu_seconds() - t);
  }
  return best;
}

std::mt19937 random_bits(1);

Tensor gradient(const Shape& s, bool heavy) {
  std::normal_distribution<float> normal;
  Tensor t = Tensor::empty(s);
  for (int64_t i = 0; i < t.numel(); ++i) {
    const float x = normal(random_bits);
    t.data<float>()[i] = heavy ? x * std::exp(1.5f * normal(random_bits)) : x;
  }
  return t;
}

Coded four_bit_codes(const Shape& s, bool is_weight) {
  Coded c;
  c.codes = Tensor::empty(s, is_weight ? DType::i8 : DType::u8);
  c.scale = Tensor::full({1}, 0.1), c.lo = is_weight ? -8 : 0, c.hi = is_weight ? 7 : 15;
  c.shift = is_weight ? 0 : -8;
  for (int64_t i = 0; i < s.numel(); ++i) {
    const int v = int(random_bits() % 16);
    if (is_weight)
      c.codes.data<int8_t>()[i] = int8_t(v - 8);
    else
      c.codes.data<uint8_t>()[i] = uint8_t(v);
  }
  return c;
}

/// Σ_k a[row, k] · b[k, col] in float64 for a sample of the outputs.
double error(const Tensor& y, const Tensor& a, const Tensor& b) {
  const int64_t m = y.size(0), n = y.size(1), depth = a.size(1);
  double worst = 0, top = 0;
  for (int64_t i = 0; i < m; i += std::max<int64_t>(1, m / 40))
    for (int64_t j = 0; j < n; j += std::max<int64_t>(1, n / 40)) {
      double s = 0;
      for (int64_t k = 0; k < depth; ++k)
        s += double(a.data_const<float>()[i * depth + k]) * double(b.data_const<float>()[k * n + j]);
      worst = std::max(worst, std::fabs(s - double(y.data_const<float>()[i * n + j])));
      top = std::max(top, std::fabs(s));
    }
  return worst / top;
}

void measure(const char* what, const char* shape, const char* kind, const GemmInput& a, const GemmInput& b,
             const Tensor& a_floats, const Tensor& b_floats) {
  const int64_t m = a.rows(), n = b.cols(), k = a.cols();
  const struct {
    const char* name;
    GemmMode mode;
  } modes[] = {{"f32", {}},
               {"int8x2", {.digits = 2}},
               {"int8x3", {.digits = 3}},
               {"bf16", {.parts = 1}},
               {"bf16x2", {.parts = 2}},
               {"bf16x3", {.parts = 3}}};
  for (const auto& mode : modes) {
    Tensor y = Tensor::empty({m, n});
    const double s = best_of(mode.mode.parts ? 1 : 7, [&] { gemm(y, a, b, {}, 1, 0, mode.mode); });
    std::printf(
        "{\"product\": \"%s\", \"shape\": \"%s\", \"gradient\": \"%s\", \"isa\": \"%s\", \"mode\": \"%s\", "
        "\"gflops\": %.1f, \"error\": %.2e}\n",
        what, shape, kind, isa_name(current_isa()), mode.name, 2e-9 * double(m * n * k) / s,
        error(y, a_floats, b_floats));
  }
}

void run() {
  const struct {
    const char* name;
    int64_t tokens, outputs, inputs;
  } shapes[] = {{"DeiT-T qkv, batch 8", 1576, 192, 192},
                {"DeiT-T fc1, batch 8", 1576, 768, 192},
                {"DeiT-T fc2, batch 8", 1576, 192, 768},
                {"BERT fc1, batch 8", 1024, 3072, 768}};
  for (const Isa isa : {Isa::avx2, Isa::avx512, Isa::amx}) {
    if (!isa_supported(isa)) continue;
    set_isa(isa);
    for (const bool heavy : {false, true})
      for (const auto& s : shapes) {
        const Tensor g = gradient({s.tokens, s.outputs}, heavy);
        const Coded w = four_bit_codes({s.outputs, s.inputs}, true),
                    x = four_bit_codes({s.tokens, s.inputs}, false);
        const char* const kind = heavy ? "heavy" : "gauss";
        measure("dX", s.name, kind, g, w, g, w.dequantize());
        measure("dW", s.name, kind, GemmInput(g).t(), x, g.transpose(0, 1).packed(), x.dequantize());
      }
  }
}

}  // namespace
}  // namespace lowbit

int main() { lowbit::run(); }
