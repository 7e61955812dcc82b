// The properties of style "one table entry, twelve checks": each is a function of an OpCase and one test.

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <map>
#include <set>

#include "autograd/core/node.h"
#include "tensor/core/allocator.h"
#include "tensor/core/context.h"
#include "tensor/core/thread_pool.h"
#include "tests/support/golden.h"
#include "tests/support/op_case.h"

namespace lowbit::test {

void add_to_table(const char* suite, OpCase c);  // op_case.cpp

namespace {

/// Restores everything a property may change.
struct Sandbox {
  Context saved = context();
  ~Sandbox() {
    context() = saved;
    set_threads(0);
    set_allocation_check(false);
  }
};

std::string rerun() {
  const testing::TestInfo* t = testing::UnitTest::GetInstance()->current_test_info();
  return str_cat("\n  rerun with --gtest_filter='", t->test_suite_name(), ".", t->name(), "'");
}

void check(const std::string& what, const std::string& problem) {
  if (!problem.empty()) ADD_FAILURE() << what << ": " << problem << rerun();
}

void check_equal(const std::string& what, const OpCase& c, const OpRun& actual, const OpRun& expected) {
  check(c.name + ", " + what + ", output", difference(actual.y, expected.y));
  for (size_t i = 0; i < expected.grads.size(); ++i)
    check(c.name + ", " + what + ", gradient of input " + std::to_string(i),
          difference(actual.grads[i], expected.grads[i]));
}

std::vector<int> differentiable(const std::vector<InputSpec>& specs) {
  std::vector<int> which;
  for (size_t i = 0; i < specs.size(); ++i)
    if (specs[i].differentiable && is_float(specs[i].dtype)) which.push_back(int(i));
  return which;
}

/// The function as a pure one: every call draws the same random numbers.
Function pure(const Function& f) {
  return [f](std::span<const Variable> v) {
    context().generator = Generator(20240607);
    return f(v);
  };
}

void check_gradient(const OpCase& c, const std::vector<InputSpec>& specs) {
  const std::vector<Tensor> in = make_inputs(c, specs, DType::f64);
  const Function f = pure(c.fn);
  const Function g = c.gradient == Gradient::frozen_rounding ? pure(c.surrogate(in)) : f;
  const GradcheckReport r = gradcheck_against(f, g, in, 1e-6, 1e-7, 1e-5, differentiable(specs));
  check(c.name, r.ok ? "" : r.str());
}

void gradient(const OpCase& c) { check_gradient(c, c.inputs); }

void gradient_is_identity(const OpCase& c) {
  const OpRun r = run_op(c, c.inputs, make_inputs(c, c.inputs));
  check(c.name, difference(r.grads[0], fill("gy", r.y.shape(), 0, 1)));
}

/// Own kernels have the bits of the CPU in every precision; libraries are in the class of float products.
void check_parity(const OpCase& c, const std::vector<InputSpec>& specs, int64_t n, MathMode precision) {
  Sandbox sandbox;
  context().gemm = precision;
  const std::vector<Tensor> in = make_inputs(c, specs);
  std::vector<Tensor> moved;
  for (const Tensor& t : in) moved.push_back(t.to(kGpu));
  const OpRun cpu = run_op(c, specs, in);
  const auto compare = [&](const std::string& kernels, Tolerance t) {
    const std::string name = c.name + ", precision " + std::to_string(int(precision)) + kernels;
    const OpRun gpu = run_op(c, specs, moved);
    check(name + ", output", difference(gpu.y.to(Device{}), cpu.y, t));
    for (size_t i = 0; i < cpu.grads.size(); ++i) {
      const Tensor g = gpu.grads[i].defined() ? gpu.grads[i].to(Device{}) : Tensor{};
      check(name + ", gradient of input " + std::to_string(i), difference(g, cpu.grads[i], t));
    }
  };
  context().library_products = false;
  compare("", {.ulps = c.parity.kind == Parity::Kind::ulp ? n : 0});
  if (c.parity.kind != Parity::Kind::gemm) return;
  context().library_products = true;  // whose tf32 may be truncated
  compare(", libraries",
          {.relative = std::sqrt(double(n)) * (precision == MathMode::tf32 ? 0x1p-8 : 4 * 0x1p-23)});
}

void parity(const OpCase& c) {
  if (!cuda_present()) GTEST_SKIP() << "no CUDA device";
  const Parity& p = c.parity;
  check_parity(c, c.inputs, p.n, MathMode::f32);
  if (!c.perf.inputs.empty())  // more than one block, long rows
    check_parity(c, c.perf.inputs, p.kind == Parity::Kind::gemm ? p.perf_n : p.n, MathMode::f32);
  if (p.kind != Parity::Kind::gemm) return;
  check_parity(c, c.inputs, p.n, MathMode::tf32);
  check_parity(c, c.inputs, p.n, MathMode::bf16);
}

void check_repeat(const OpCase& c, const std::vector<InputSpec>& specs) {
  Sandbox sandbox;
  const std::vector<Tensor> in = make_inputs(c, specs);
  const OpRun first = run_op(c, specs, in);
  set_allocation_check(true);
  check_equal("second run on memory full of NaN", c, run_op(c, specs, in), first);
}
void repeat(const OpCase& c) { check_repeat(c, c.inputs); }

void threads_do_not_matter(const OpCase& c) {
  Sandbox sandbox;
  for (const auto* specs : {&c.inputs, &c.perf.inputs}) {  // the small case and one that is really split
    if (specs->empty() && specs == &c.perf.inputs) continue;
    const std::vector<Tensor> in = make_inputs(c, *specs);
    set_threads(1);
    const OpRun one = run_op(c, *specs, in);
    for (int n : {2, 3}) {
      set_threads(n);
      check_equal(std::to_string(n) + " threads", c, run_op(c, *specs, in), one);
    }
  }
}

Tensor reversed_dims(const Tensor& t) {
  Tensor r = t;
  for (int a = 0, b = t.ndim() - 1; a < b; ++a, --b) r = r.transpose(a, b);
  return r;
}
/// Same values, dimensions stored in the opposite order.
Tensor permuted(const Tensor& t) { return reversed_dims(reversed_dims(t).clone()); }
/// Same values as a window of a larger tensor full of NaN.
Tensor sliced(const Tensor& t) {
  Shape s = t.shape();
  for (int d = 0; d < t.ndim(); ++d) s.set(d, t.size(d) + 2);
  Tensor window = Tensor::full(s, is_float(t.dtype()) ? NAN : -1, t.dtype(), t.device());
  for (int d = 0; d < t.ndim(); ++d) window = window.slice(d, 1, 1 + t.size(d));
  window.copy_from(t);
  return window;
}
/// Same values, every second element of memory.
Tensor strided(const Tensor& t) {
  if (t.ndim() == 0 || t.ndim() == kMaxDims) return sliced(t);
  Shape s = t.shape();
  s.append(2);
  Tensor window = Tensor::full(s, is_float(t.dtype()) ? NAN : -1, t.dtype(), t.device()).select(t.ndim(), 0);
  window.copy_from(t);
  return window;
}

void check_layout(const OpCase& c, const std::vector<InputSpec>& specs) {
  const std::vector<Tensor> in = make_inputs(c, specs);
  const OpRun packed = run_op(c, specs, in);
  const std::pair<const char*, Tensor (*)(const Tensor&)> layouts[] = {
      {"permuted", permuted}, {"sliced", sliced}, {"strided", strided}};
  for (const auto& [name, make] : layouts)
    for (size_t which = 0; which <= in.size(); ++which) {  // each input alone, then all
      std::vector<Tensor> other = in;
      for (size_t i = 0; i < in.size(); ++i)
        if (which == in.size() || which == i) other[i] = make(in[i]);
      check_equal(str_cat(name, " input ", which == in.size() ? "(all)" : std::to_string(which)), c,
                  run_op(c, specs, other), packed);
    }
}
void layout(const OpCase& c) { check_layout(c, c.inputs); }

void check_bounds(const OpCase& c, const std::vector<InputSpec>& specs) {
  Sandbox sandbox;
  const size_t before = allocation_violations();
  set_allocation_check(true);
  {
    const std::vector<Tensor> in = make_inputs(c, specs), copy = make_inputs(c, specs);
    run_op(c, specs, in);
    for (size_t i = 0; i < in.size(); ++i)
      check(str_cat(c.name, ", input ", i, " must stay as it was"), difference(in[i], copy[i]));
  }
  const size_t found = allocation_violations() - before;
  check(c.name, found ? str_cat("wrote outside its buffers: ", found, " damaged guard bands") : "");
}
void bounds(const OpCase& c) { check_bounds(c, c.inputs); }

/// Float result against the same function in double.
void check_precision(const OpCase& c, const std::vector<InputSpec>& specs) {
  const OpRun single = run_op(c, specs, make_inputs(c, specs));
  const OpRun exact = run_op(c, specs, make_inputs(c, specs, DType::f64));
  const auto close = [&](const std::string& what, const Tensor& a, const Tensor& e) {
    if (a.defined() && e.defined())
      check(c.name + ", against float64, " + what,
            difference(a.cast(DType::f64), e, {.relative = 2e-5, .absolute = 1e-6}));
    else
      check(c.name + ", against float64, " + what, difference(a, e));
  };
  close("output", single.y, exact.y);
  for (size_t i = 0; i < exact.grads.size(); ++i)
    close("gradient of input " + std::to_string(i), single.grads[i], exact.grads[i]);
}

void sizes(const OpCase& c) {
  std::vector<int64_t> extents{1, 31, 33, 4097};
  if (c.allows_empty) extents.insert(extents.begin(), 0);
  for (int64_t n : extents) {
    SCOPED_TRACE(str_cat("extent ", n));
    const std::vector<InputSpec> specs = c.sizes(n);
    check_repeat(c, specs);
    check_bounds(c, specs);
    if (n == 0) continue;
    check_layout(c, specs);
    if (c.gradient == Gradient::numeric || c.gradient == Gradient::frozen_rounding) check_gradient(c, specs);
    if (c.gradient == Gradient::numeric) check_precision(c, specs);
  }
}

/// Two backward passes over one tape, with gradients in windows of a poisoned arena when asked.
OpRun run_twice(const OpCase& c, const std::vector<Tensor>& in, bool arena) {
  context().generator = Generator(20240607);
  std::vector<Variable> v;
  for (size_t i = 0; i < in.size(); ++i) {
    v.emplace_back(in[i], c.inputs[i].differentiable && is_float(in[i].dtype()));
    if (arena && v.back().requires_grad()) v.back().set_grad_buffer(Tensor::full(in[i].shape(), NAN));
  }
  const Variable y = c.fn(v);
  const Tensor gy = fill("gy", y.shape(), 0, 1);
  y.backward(gy, true);
  y.backward(gy);
  OpRun r{y.data(), {}};
  for (const Variable& x : v) r.grads.push_back(x.grad());
  return r;
}

void partial_gradients(const OpCase& c) {
  const std::vector<Tensor> in = make_inputs(c, c.inputs);
  const OpRun all = run_op(c, c.inputs, in);
  const std::vector<int> which = differentiable(c.inputs);
  for (unsigned subset = 0; subset < 1u << which.size(); ++subset) {
    unsigned wanted = 0;
    OpRun expected = all;
    for (size_t k = 0; k < which.size(); ++k) {
      if (subset >> k & 1u)
        wanted |= 1u << which[k];
      else
        expected.grads[size_t(which[k])] = Tensor{};
    }
    check_equal(str_cat("gradients asked of input mask ", wanted), c, run_op(c, c.inputs, in, wanted),
                expected);
  }
  OpRun twice = all;
  for (Tensor& g : twice.grads)
    if (g.defined()) {
      g = g.clone();
      float* p = g.data<float>();
      for (int64_t i = 0; i < g.numel(); ++i) p[i] += p[i];
    }
  if (which.empty()) return;
  check_equal("second backward adds", c, run_twice(c, in, false), twice);
  check_equal("second backward adds, gradient arena", c, run_twice(c, in, true), twice);
}

/// "" when a result says something: finite, ≥ 5 % non-zero, no value held by more than 95 %.
std::string trivial(const Tensor& t) {
  const std::vector<float> v = t.to_vector<float>();
  std::map<float, size_t> count;
  size_t nonzero = 0, most = 0;
  for (float x : v) {
    if (!std::isfinite(x)) return "not finite";
    nonzero += x != 0;
    most = std::max(most, ++count[x]);
  }
  if (double(nonzero) < 0.05 * double(v.size()) || nonzero == 0)
    return str_cat("only ", nonzero, " of ", v.size(), " are not zero");
  if (v.size() > 1 && double(most) > 0.95 * double(v.size()))
    return str_cat(most, " of ", v.size(), " are one value");
  return "";
}

void not_trivial(const OpCase& c) {
  const OpRun r = run_op(c, c.inputs, make_inputs(c, c.inputs));
  check(c.name + ", output", trivial(r.y));
  if (c.gradient == Gradient::none) return;
  for (int i : differentiable(c.inputs)) {
    const Tensor& g = r.grads[size_t(i)];
    check(str_cat(c.name, ", gradient of input ", i), g.defined() ? trivial(g) : "never reached");
  }
}

void misuse(const Misuse& m) {
  try {
    m.call();
    check(m.name, "nothing was thrown, expected: " + m.text);
  } catch (const Error& e) {
    check(m.name, e.what() == m.text ? "" : str_cat("got \"", e.what(), "\", expected \"", m.text, "\""));
  }
}

void misuses(const OpCase& c) {
  for (const Misuse& m : c.misuse) misuse(m);
}

bool always(const OpCase&) { return true; }
template <Gradient G>
bool has_gradient(const OpCase& c) {
  return c.gradient == G;
}

const Property kProperties[] = {
    {"GradientMatchesFiniteDifference", has_gradient<Gradient::numeric>, gradient},
    {"GradientMatchesFrozenRounding", has_gradient<Gradient::frozen_rounding>, gradient},
    {"GradientIsIdentity", has_gradient<Gradient::identity>, gradient_is_identity},
    {"CudaEqualsCpu", [](const OpCase& c) { return c.cuda; }, parity},
    {"RepeatsOnPoisonedMemory", always, repeat},
    {"ThreadCountDoesNotMatter", always, threads_do_not_matter},
    {"LayoutDoesNotMatter", always, layout},
    {"StaysInsideItsBuffers", always, bounds},
    {"PartialGradientsAgree", always, partial_gradients},
    {"IsNotTrivial", always, not_trivial},
    {"HandlesSizes", [](const OpCase& c) { return bool(c.sizes); }, sizes},
    {"RejectsMisuse", [](const OpCase& c) { return !c.misuse.empty(); }, misuses},
};

class PropertyTest final : public testing::Test {
 public:
  PropertyTest(void (*check)(const OpCase&), OpCase op) : check_(check), op_(std::move(op)) {}
  void TestBody() override { check_(op_); }

 private:
  void (*check_)(const OpCase&);
  OpCase op_;
};

}  // namespace

std::span<const Property> op_properties() { return kProperties; }

bool register_op_cases(const char* suite, std::vector<OpCase> cases) {
  for (OpCase& c : cases) {
    for (const Property& p : kProperties) {
      if (!p.applies(c)) continue;
      // The factory's type is testing::Test, so that a TEST() may use the same suite name.
      testing::RegisterTest(suite, str_cat(p.name, "/", c.name).c_str(), nullptr, nullptr, __FILE__, __LINE__,
                            [check = p.check, c]() -> testing::Test* { return new PropertyTest(check, c); });
    }
    add_to_table(suite, std::move(c));
  }
  return true;
}

}  // namespace lowbit::test
