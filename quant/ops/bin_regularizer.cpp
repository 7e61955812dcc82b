#include "quant/ops/bin_regularizer.h"

#include <vector>

#include "autograd/core/node.h"

namespace lowbit {
namespace {

/// Count, mean and variance of w_c per bin; a bin that contributes nothing has count 0.
struct Bin {
  int64_t count = 0;
  double mean = 0, variance = 0;
};

template <class T>
struct Weight {
  const T* w;
  int64_t n;
  T a;
  Levels levels;
  T u(int64_t i) const { return w[i] / a; }
  T clipped(T u) const {
    const T top = u < T(levels.hi) ? u : T(levels.hi);
    return top > T(levels.lo) ? top : T(levels.lo);
  }
  T mask(T u) const {
    if (u == T(levels.lo) || u == T(levels.hi)) return T(0.5);
    return u > T(levels.lo) && u < T(levels.hi) ? T(1) : T(0);
  }
};

template <class T>
T effective_scale(const Variable& scale, const BinRegularizerSettings& s) {
  const T alpha = scale.data().packed().data_const<T>()[s.slot];
  if (!s.published_scale) return alpha;
  const T part = alpha * T(s.grad_scale);
  return (alpha - part) + part;
}

template <class T>
std::vector<Bin> bins_of(const Weight<T>& w, MembershipTest membership, double& mse) {
  const int lo = w.levels.lo;
  std::vector<Bin> bins(size_t(w.levels.hi - lo + 1));
  mse = 0;
  for (int64_t i = 0; i < w.n; ++i) {
    const T c = w.clipped(w.u(i)), q = math::rint(c);
    const double d = double(q * w.a - c * w.a);
    mse += d * d;
    Bin& b = bins[size_t(int(q) - lo)];
    ++b.count, b.mean += double(c * w.a);
  }
  mse /= double(w.n);
  for (size_t k = 0; k < bins.size(); ++k) {
    const T level = T(int(k) + lo);
    const bool hit = membership == MembershipTest::exact || (level * w.a) / w.a == level;
    if (!hit || bins[k].count < 2)
      bins[k].count = 0;
    else
      bins[k].mean /= double(bins[k].count);
  }
  for (int64_t i = 0; i < w.n; ++i) {
    const T c = w.clipped(w.u(i));
    Bin& b = bins[size_t(int(math::rint(c)) - lo)];
    const double d = double(c * w.a) - b.mean;
    if (b.count) b.variance += d * d / double(b.count - 1);
  }
  return bins;
}

struct BinRegularizerNode final : Node {
  Saved w, scale;
  BinRegularizerSettings settings;
  std::vector<Bin> bins;
  const char* name() const override { return "bin_regularizer"; }
  template <class T>
  void run(const Tensor& gy, GradSink& gx) {
    const Variable s(scale.get(name(), 1));
    const Tensor values = w.get(name(), 0);
    const Weight<T> v{values.data_const<T>(), values.numel(), effective_scale<T>(s, settings),
                      settings.levels};
    const double g = double(gy.data_const<T>()[0]);
    Tensor dw = gx.wants(0) ? gx.alloc(0) : Tensor{};
    T* out = dw.defined() ? dw.data<T>() : nullptr;
    double da = 0;
    for (int64_t i = 0; i < v.n; ++i) {
      const T u = v.u(i), c = v.clipped(u), m = v.mask(u), q = math::rint(c);
      const Bin& b = bins[size_t(int(q) - settings.levels.lo)];
      double d = 2 * double(c * v.a - q * v.a) / double(v.n);
      if (b.count) d += 2 * (double(c * v.a) - b.mean) / double(b.count - 1);
      if (out) out[i] = T(g * d) * m;
      da += d * double(c - m * u);
    }
    if (out) gx.add(0, dw);
    if (gx.wants(1)) {
      Tensor ds = Tensor::zeros(s.shape(), s.dtype());
      ds.data<T>()[settings.slot] = T(g * settings.grad_scale * da);
      gx.add(1, ds);
    }
  }
  void backward(const Tensor& gy, GradSink& gx) override {
    if (gy.dtype() == DType::f64)
      run<double>(gy, gx);
    else
      run<float>(gy, gx);
  }
  void release() override { w.release(), scale.release(); }
  std::vector<Tensor> saved() const override { return {w.peek(), scale.peek()}; }
};

template <class T>
Tensor forward(const Variable& w, const Variable& scale, const BinRegularizerSettings& s,
               std::vector<Bin>& bins) {
  const Tensor values = w.data().packed();
  double sum = 0;
  bins = bins_of(Weight<T>{values.data_const<T>(), values.numel(), effective_scale<T>(scale, s), s.levels},
                 s.membership, sum);
  for (const Bin& b : bins) sum += b.variance;
  return Tensor::full({1}, sum, dtype_of<T>);
}

}  // namespace

Variable bin_regularizer(const Variable& w, const Variable& scale, const BinRegularizerSettings& s) {
  LOWBIT_CHECK(s.slot >= 0 && s.slot < scale.numel(), value, "bin_regularizer",
               "the slot must name a scale (got ", s.slot, " of ", scale.str(), ")");
  LOWBIT_CHECK(w.dtype() == scale.dtype() && (w.dtype() == DType::f32 || w.dtype() == DType::f64), dtype,
               "bin_regularizer", "w and scale must be f32 or f64 (got w=", w.str(), ", scale=", scale.str(),
               ")");
  auto node = std::make_shared<BinRegularizerNode>();
  Tensor y = w.dtype() == DType::f64 ? forward<double>(w, scale, s, node->bins)
                                     : forward<float>(w, scale, s, node->bins);
  node->w.set(w.data().packed());
  node->scale.set(scale.data().packed());
  node->settings = s;
  return record(std::move(y), std::move(node), {w, scale});
}

}  // namespace lowbit
