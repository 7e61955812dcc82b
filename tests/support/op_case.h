#pragma once
// One table entry per op; everything that can be checked of any op is derived from it.
//
//   const bool registered = register_op_cases("LayerNorm", {{.name = "rows192", .inputs = {…}, .fn = …}});
//
// registers one test per property, named like a sentence: LayerNorm.GradientMatchesFiniteDifference/rows192.
// benchmarks/op_bench.cpp times the same table.

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "autograd/core/variable.h"

namespace lowbit::test {

using Function = std::function<Variable(std::span<const Variable>)>;

/// Values are moved to at least `margin` away from offset + k·step (step 0: from offset alone): kinks and
/// rounding boundaries, where a finite difference says nothing.
struct Avoid {
  double step = 0, offset = 0, margin = 0;
};

/// A deterministic input: uniform in [lo, hi), a function of name, shape and range alone.
struct InputSpec {
  std::string name;
  Shape shape;
  double lo = -1, hi = 1;
  DType dtype = DType::f32;  ///< f32, or i64 with lo ≤ value < hi
  bool differentiable = true;
  Avoid avoid = {};
};
Tensor make_input(const InputSpec& spec);

enum class Gradient : uint8_t {
  numeric,          ///< central differences in float64
  frozen_rounding,  ///< central differences of `surrogate`
  identity,         ///< the gradient of input 0 is gy, bit for bit
  none,
};

/// How far the CUDA result may be from the CPU result.
struct Parity {
  enum class Kind : uint8_t { exact, ulp, gemm } kind = Kind::exact;
  /// Ulps; for gemm the longest contraction K of the products, gradients included: exact by own kernels, by
  /// libraries (Context::library_products) within 4·ε·√K of the largest magnitude.
  int64_t n = 0;
  int64_t perf_n = 0;  ///< K of the perf inputs
};

struct Misuse {
  std::string name;
  std::function<void()> call;
  std::string text;  ///< what() of the Error, exactly
};

struct Perf {
  std::vector<InputSpec> inputs;  ///< benchmark shapes; empty: the case is not benchmarked
  double bytes = 0;               ///< moved by forward; 0: every input once and the output once
  double flops = 0;
  double backward_bytes = 0;  ///< 0: gy, the differentiable inputs and their gradients once
};

struct OpCase {
  std::string name;
  std::vector<InputSpec> inputs;
  Function fn;  ///< same code for f32 and f64 inputs
  Gradient gradient = Gradient::numeric;
  Parity parity = {};
  /// Changes the filled inputs where one depends on another.
  std::function<void(std::vector<Tensor>&)> prepare = {};
  /// The function to difference for frozen_rounding, made at the float64 base point.
  std::function<Function(std::span<const Tensor>)> surrogate = {};
  /// Inputs for a characteristic extent n; checked for 1, 31, 33 and 4097, and 0 with `allows_empty`.
  std::function<std::vector<InputSpec>(int64_t)> sizes = {};
  bool allows_empty = false;
  std::vector<Misuse> misuse = {};
  Perf perf = {};
  bool cuda = true;  ///< false: an op of the tests that has no CUDA kernel
};

/// The first GPU; tests that need one are skipped where there is none (the emulated one of
/// ENABLE_CUDA=EMULATE counts).
inline constexpr Device kGpu{Device::Kind::cuda, 0};
bool cuda_present();

/// Registers the derived tests of every case and adds the cases to the table that op_bench runs.
bool register_op_cases(const char* suite, std::vector<OpCase> cases);

/// One derived check. op_case_test.cpp proves of each that it fails for a planted defect.
struct Property {
  const char* name;
  bool (*applies)(const OpCase&);
  void (*check)(const OpCase&);
};
std::span<const Property> op_properties();

struct RegisteredCase {
  std::string suite;
  OpCase op;
};
const std::vector<RegisteredCase>& registered_op_cases();

/// Inputs of a case after `prepare`; f64 casts the floating ones.
std::vector<Tensor> make_inputs(const OpCase& c, const std::vector<InputSpec>& specs,
                                DType dtype = DType::f32);

/// Output and the gradient of each input (undefined where none was asked for or reached).
struct OpRun {
  Tensor y;
  std::vector<Tensor> grads;
};
/// One forward and backward with a fixed gy and a fixed generator. Bit i of `wanted`: input i requires a
/// gradient, if it is differentiable.
OpRun run_op(const OpCase& c, const std::vector<InputSpec>& specs, const std::vector<Tensor>& inputs,
             unsigned wanted = ~0u);

/// Allowed: so many ulps, or an absolute difference of relative·(largest expected magnitude) + absolute.
struct Tolerance {
  int64_t ulps = 0;
  double relative = 0, absolute = 0;
};
/// Empty when shape, dtype and every bit agree, or values within the tolerance; else the worst element, both
/// values and their ulp distance.
std::string difference(const Tensor& actual, const Tensor& expected, Tolerance tolerance = {});

}  // namespace lowbit::test
