#include <cmath>

#include "autograd/core/node.h"

namespace lowbit {
namespace {

using Function = std::function<Variable(std::span<const Variable>)>;

std::vector<Variable> leaves(std::span<const Tensor> inputs, bool grad) {
  std::vector<Variable> v;
  for (const Tensor& t : inputs)
    v.emplace_back(t.dtype() == DType::f64 ? t.clone() : t, grad && t.dtype() == DType::f64);
  return v;
}

double weighted_sum(const Function& f, std::span<const Variable> v, std::span<const double> w) {
  NoGrad off;
  const std::vector<double> y = f(v).data().to_vector<double>();
  double s = 0;
  for (size_t i = 0; i < y.size(); ++i) s += w[i] * y[i];
  return s;
}

/// Fixed pseudo-random numbers in [-1, 1), away from zero.
std::vector<double> directions(size_t n, uint64_t seed) {
  std::vector<double> v(n);
  uint64_t s = seed * 0x9E3779B97F4A7C15ull + 1;
  for (double& x : v) {
    s ^= s << 13, s ^= s >> 7, s ^= s << 17;
    x = double(s >> 11) / 9007199254740992.0 * 1.6 - 0.8;
    x += x < 0 ? -0.2 : 0.2;
  }
  return v;
}

void compare(GradcheckReport& r, double analytic, double numeric, int input, int64_t element, double atol,
             double rtol) {
  const double abs = std::fabs(analytic - numeric), scale = std::max(std::fabs(analytic), std::fabs(numeric));
  const bool bad = !(abs <= atol + rtol * scale);
  if (abs > r.worst_abs || (bad && r.ok)) {
    r.worst_abs = abs, r.worst_rel = scale > 0 ? abs / scale : 0;
    r.input = input, r.element = element;
  }
  if (bad) r.ok = false;
}

}  // namespace

std::string GradcheckReport::str() const {
  return str_cat(ok ? "ok" : "FAILED", ": worst difference ", worst_abs, " (relative ", worst_rel,
                 ") at input ", input, ", element ", element);
}

GradcheckReport gradcheck_against(const Function& f, const Function& surrogate,
                                  std::span<const Tensor> inputs, double eps, double atol, double rtol,
                                  std::span<const int> grad_of) {
  const auto chosen = [&](int i) {
    if (inputs[size_t(i)].dtype() != DType::f64) return false;
    if (grad_of.empty()) return true;
    for (int g : grad_of)
      if (g == i) return true;
    return false;
  };
  std::vector<Variable> v = leaves(inputs, true);
  int64_t total = 0;
  for (size_t i = 0; i < inputs.size(); ++i) total += chosen(int(i)) ? inputs[i].numel() : 0;
  Variable y0 = f(v);
  const int64_t outputs = y0.numel();
  const bool full = total <= 200 && outputs <= 200;
  GradcheckReport report;
  for (int pass = 0; pass < (full ? int(outputs) : 2); ++pass) {
    std::vector<double> w =
        full ? std::vector<double>(size_t(outputs), 0.0) : directions(size_t(outputs), uint64_t(pass) + 1);
    if (full) w[size_t(pass)] = 1;
    for (Variable& x : v) x.zero_grad();
    Variable y = f(v);
    if (!y.requires_grad()) fail(ErrorKind::value, "gradcheck", "the function has no differentiable input");
    y.backward(Tensor::from(std::span<const double>(w), y.shape()));
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (!chosen(int(i))) continue;
      const int64_t n = inputs[i].numel();
      const Tensor g = v[i].grad();
      const std::vector<double> analytic =
          g.defined() ? g.to_vector<double>() : std::vector<double>(size_t(n), 0.0);
      std::vector<Variable> moved = leaves(inputs, false);
      double* p = moved[i].mutable_data().data<double>();
      const auto central = [&](const std::vector<double>& u) {
        const std::vector<double> base(p, p + n);
        for (int64_t k = 0; k < n; ++k) p[k] = base[size_t(k)] + eps * u[size_t(k)];
        const double up = weighted_sum(surrogate, moved, w);
        for (int64_t k = 0; k < n; ++k) p[k] = base[size_t(k)] - eps * u[size_t(k)];
        const double down = weighted_sum(surrogate, moved, w);
        for (int64_t k = 0; k < n; ++k) p[k] = base[size_t(k)];
        return (up - down) / (2 * eps);
      };
      if (full) {
        for (int64_t k = 0; k < n; ++k) {
          std::vector<double> u(size_t(n), 0.0);
          u[size_t(k)] = 1;
          compare(report, analytic[size_t(k)], central(u), int(i), k, atol, rtol);
        }
      } else {
        const std::vector<double> u = directions(size_t(n), 77 + i);
        double dot = 0, magnitude = 0;
        for (int64_t k = 0; k < n; ++k)
          dot += analytic[size_t(k)] * u[size_t(k)], magnitude += std::fabs(analytic[size_t(k)]);
        // Rounding of the two sums grows with the number of terms.
        compare(report, dot, central(u), int(i), -1, atol + 1e-7 * magnitude, rtol);
      }
    }
  }
  return report;
}

GradcheckReport gradcheck(const Function& f, std::span<const Tensor> inputs, double eps, double atol,
                          double rtol, std::span<const int> grad_of) {
  return gradcheck_against(f, f, inputs, eps, atol, rtol, grad_of);
}

}  // namespace lowbit
