#include "quant/ops/bin_regularizer.h"

#include <algorithm>

#include "autograd/core/node.h"
#include "tensor/engine/pointwise.h"
#include "tensor/engine/reduce.h"

namespace lowbit {
namespace {

void forward_cpu(const BinFwdArgs& a, Stream) {
  dispatch_real(a.b.w.dtype, [&]<class T>(T) {
    const int64_t n = a.b.w.numel(), chunks = ceil_div(n, kChunk);
    const BinCall b = a.b;
    const T scale = bin_scale<T>(b);
    BinSums* const sums = a.sums.as<BinSums>();
    parallel_for(chunks, cpu::kGrain / kChunk, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        BinSums* const own = sums + c * b.bins();
        std::fill_n(own, b.bins(), BinSums{0, 0, 0});
        for (int64_t i = c * kChunk; i < std::min(n, (c + 1) * kChunk); ++i) {
          const BinElement<T> e = bin_element(b, scale, i);
          bin_add(own[int(e.q) - b.lo], e.d);
        }
      }
    });
    bin_finish<T>(b, sums, chunks, n, a.means.as<BinMean>(), a.y.as<T>());
  });
}

void backward_cpu(const BinBwdArgs& a, Stream) {
  dispatch_real(a.b.w.dtype, [&]<class T>(T) {
    const int64_t n = a.b.w.numel();
    const BinCall b = a.b;
    const T scale = bin_scale<T>(b), gy = *a.gy.as<const T>();
    T* const dw = a.dw.as<T>();
    const BinMean* const means = a.means.as<const BinMean>();
    const double sum =
        cpu::sum(n, [=](int64_t i) { return bin_backward(b, means, gy, dw, double(n), scale, i); });
    if (a.dscale.data) a.dscale.as<T>()[b.slot] = T(bin_factor(b) * sum);
  });
}

struct BinRegularizerNode final : Node {
  Saved w, scale;
  Tensor means, factor;
  BinCall call{};
  const char* name() const override { return "bin_regularizer"; }
  void backward(const Tensor& gy, GradSink& gx) override {
    BinCall b = call;
    b.w = w.get(name(), 0).view(), b.scale = scale.get(name(), 1).view();
    Tensor dw = gx.wants(0) ? gx.alloc(0) : Tensor{}, ds = gx.wants(1) ? gx.alloc(1) : Tensor{};
    if (ds.defined()) ds.fill(0);
    Tensor da = Tensor::empty({bin_workspace(b.w.numel())}, DType::f64, gy.device());
    const auto view_of = [](Tensor& t) { return t.defined() ? t.mutable_view() : View{}; };
    bin_regularizer_bwd({b, means.view(), gy.view(), view_of(dw), da.mutable_view(), view_of(ds)},
                        gy.device());
    if (dw.defined()) gx.add(0, dw);
    if (ds.defined()) gx.add(1, ds);
  }
  void release() override { w.release(), scale.release(); }
  std::vector<Tensor> saved() const override { return {w.peek(), scale.peek(), means}; }
};

}  // namespace

constinit KernelSlot<BinFwdArgs> bin_regularizer_fwd{"bin_regularizer.fwd", forward_cpu};
constinit KernelSlot<BinBwdArgs> bin_regularizer_bwd{"bin_regularizer.bwd", backward_cpu};

Variable bin_regularizer(const Variable& w, const Variable& scale, const BinRegularizerSettings& s) {
  LOWBIT_CHECK(s.slot >= 0 && s.slot < scale.numel(), value, "bin_regularizer",
               "the slot must name a scale (got ", s.slot, " of ", scale.str(), ")");
  LOWBIT_CHECK(w.dtype() == scale.dtype() && (w.dtype() == DType::f32 || w.dtype() == DType::f64), dtype,
               "bin_regularizer", "w and scale must be f32 or f64 (got w=", w.str(), ", scale=", scale.str(),
               ")");
  LOWBIT_CHECK(w.numel() > 0, value, "bin_regularizer", "w must have elements (got ", w.str(), ")");
  const Tensor values = w.data().packed(), scales = scale.data().packed();
  auto node = std::make_shared<BinRegularizerNode>();
  node->w.set(values), node->scale.set(scales), node->factor = s.factor;
  node->call = {values.view(),
                scales.view(),
                s.slot,
                s.grad_scale,
                s.factor.defined() ? s.factor.data_const<float>() : nullptr,
                s.levels.lo,
                s.levels.hi,
                s.published_scale,
                s.membership == MembershipTest::exact};
  const int64_t bins = node->call.bins();
  node->means = Tensor::empty({bins, 2}, DType::f64, w.device());
  Tensor sums = Tensor::empty({ceil_div(w.numel(), kChunk), bins, 3}, DType::f64, w.device());
  Tensor y = Tensor::empty({1}, w.dtype(), w.device());
  bin_regularizer_fwd({node->call, sums.mutable_view(), node->means.mutable_view(), y.mutable_view()},
                      w.device());
  return record(std::move(y), std::move(node), {w, scale});
}

}  // namespace lowbit
