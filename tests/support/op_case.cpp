#include "tests/support/op_case.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "tensor/core/backend.h"
#include "tensor/core/context.h"
#include "tests/support/golden.h"

namespace lowbit::test {
namespace {

double stay_away(double v, const Avoid& a) {
  if (a.margin <= 0) return v;
  const double nearest = a.step > 0 ? a.offset + a.step * std::nearbyint((v - a.offset) / a.step) : a.offset;
  if (std::fabs(v - nearest) >= a.margin) return v;
  return nearest + (v < nearest ? -a.margin : a.margin);
}

Shape index_of(int64_t flat, const Shape& shape) {
  Shape index = shape;
  for (int d = shape.ndim() - 1; d >= 0; --d) {
    index.set(d, flat % shape[d]);
    flat /= shape[d];
  }
  return index;
}

/// Position on the number line of representable values: neighbours differ by one.
template <class T>
int64_t ordinal(T v) {
  if constexpr (std::is_integral_v<T>) {
    return int64_t(v);
  } else {
    using I = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
    const I bits = std::bit_cast<I>(v);
    return bits < 0 ? -int64_t(bits & std::numeric_limits<I>::max()) : int64_t(bits);
  }
}

template <class T>
bool same_bits(T a, T b) {
  if constexpr (std::is_integral_v<T>)
    return a == b;
  else
    return std::bit_cast<std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>>(a) ==
           std::bit_cast<std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>>(b);
}

template <class T>
std::string difference_typed(const Tensor& actual, const Tensor& expected, Tolerance tolerance) {
  const std::vector<T> a = actual.to_vector<T>(), e = expected.to_vector<T>();
  double largest = 0;
  for (T v : e) largest = std::fmax(largest, std::fabs(double(v)));
  const double limit = tolerance.relative * largest + tolerance.absolute;
  int64_t bad = 0, worst = -1, worst_distance = -1;
  for (size_t i = 0; i < a.size(); ++i) {
    if (same_bits(a[i], e[i])) continue;
    const bool finite = std::isfinite(double(a[i])) && std::isfinite(double(e[i]));
    const int64_t distance =
        finite ? std::abs(ordinal(a[i]) - ordinal(e[i])) : std::numeric_limits<int64_t>::max();
    if (finite && tolerance.ulps > 0 && distance <= tolerance.ulps) continue;
    if (finite && limit > 0 && std::fabs(double(a[i]) - double(e[i])) <= limit) continue;
    ++bad;
    if (distance > worst_distance) worst = int64_t(i), worst_distance = distance;
  }
  if (bad == 0) return "";
  std::ostringstream s;
  s.precision(std::numeric_limits<T>::max_digits10);
  s << bad << " of " << a.size() << " elements differ; worst at " << index_of(worst, expected.shape()).str()
    << ": got " << +a[size_t(worst)] << ", expected " << +e[size_t(worst)] << ", "
    << (worst_distance == std::numeric_limits<int64_t>::max() ? "not finite"
                                                              : std::to_string(worst_distance) + " ulp");
  return s.str();
}

std::vector<RegisteredCase>& table() {
  static std::vector<RegisteredCase> cases;
  return cases;
}

}  // namespace

bool cuda_present() {
  static const bool present = cuda_unusable().empty();
  return present;
}

Tensor make_input(const InputSpec& spec) {
  const Tensor u = fill(spec.name, spec.shape, 0.5, 0.5);  // [0, 1)
  Tensor t = Tensor::empty(spec.shape, spec.dtype);
  const float* from = u.data_const<float>();
  const auto value = [&](int64_t i) { return spec.lo + (spec.hi - spec.lo) * double(from[i]); };
  const int64_t n = u.numel();
  if (spec.dtype == DType::i64) {
    int64_t* out = t.data<int64_t>();
    for (int64_t i = 0; i < n; ++i) out[i] = int64_t(std::floor(value(i)));
  } else {
    float* out = t.data<float>();
    for (int64_t i = 0; i < n; ++i) out[i] = float(stay_away(value(i), spec.avoid));
  }
  return t;
}

std::vector<Tensor> make_inputs(const OpCase& c, const std::vector<InputSpec>& specs, DType dtype) {
  std::vector<Tensor> inputs;
  for (const InputSpec& s : specs) inputs.push_back(make_input(s));
  if (c.prepare) c.prepare(inputs);
  for (Tensor& t : inputs)
    if (is_float(t.dtype()) && t.dtype() != dtype) t = t.cast(dtype);
  return inputs;
}

OpRun run_op(const OpCase& c, const std::vector<InputSpec>& specs, const std::vector<Tensor>& inputs,
             unsigned wanted) {
  context().generator = Generator(20240607);
  std::vector<Variable> v;
  for (size_t i = 0; i < inputs.size(); ++i)
    v.emplace_back(inputs[i], specs[i].differentiable && is_float(inputs[i].dtype()) && (wanted >> i & 1u));
  const Variable y = c.fn(v);
  OpRun r{y.data().packed(), {}};
  if (y.requires_grad()) y.backward(fill("gy", y.shape(), 0, 1).cast(y.dtype()).to(y.device()));
  for (const Variable& x : v) r.grads.push_back(x.grad());
  return r;
}

std::string difference(const Tensor& actual, const Tensor& expected, Tolerance tolerance) {
  if (actual.defined() != expected.defined())
    return str_cat("got ", actual.defined() ? actual.str() : "nothing", ", expected ",
                   expected.defined() ? expected.str() : "nothing");
  if (!actual.defined()) return "";
  if (!(actual.shape() == expected.shape()) || actual.dtype() != expected.dtype())
    return str_cat("got ", actual.str(), ", expected ", expected.str());
  switch (actual.dtype()) {
    case DType::f32:
      return difference_typed<float>(actual, expected, tolerance);
    case DType::f64:
      return difference_typed<double>(actual, expected, tolerance);
    case DType::i64:
      return difference_typed<int64_t>(actual, expected, tolerance);
    case DType::i32:
      return difference_typed<int32_t>(actual, expected, tolerance);
    case DType::i8:
      return difference_typed<int8_t>(actual, expected, tolerance);
    case DType::u8:
      return difference_typed<uint8_t>(actual, expected, tolerance);
    default:
      return equal_bits(actual, expected) ? "" : "bits differ";
  }
}

void add_to_table(const char* suite, OpCase c) { table().push_back({suite, std::move(c)}); }

const std::vector<RegisteredCase>& registered_op_cases() { return table(); }

}  // namespace lowbit::test
