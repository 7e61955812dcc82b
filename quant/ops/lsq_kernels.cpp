// CPU kernels of fake_quant_lsq.

#include <algorithm>
#include <cmath>
#include <limits>

#include "quant/ops/lsq.h"
#include "tensor/engine/column.h"
#include "tensor/engine/pointwise.h"

namespace lowbit {
namespace {

/// Elements of x, and of x + before.
template <class T>
struct Plain {
  const T* x;
  T operator()(int64_t i) const { return x[i]; }
};
template <class T>
struct Shifted {
  const T *x, *before;
  T operator()(int64_t i) const { return x[i] + before[i]; }
};

/// gelu(h) of n ≤ kChunk elements, and its slope where that is not null: loops by themselves, since the
/// compiler does not vectorise them together with what a quantizer does.
template <class T>
void gelu_chunk(const T* h, int64_t n, T* value, T* slope) {
  constexpr pointwise::Gelu f;
  if (!slope)
    for (int64_t i = 0; i < n; ++i) value[i] = f.fwd(h[i]);
  else
    for (int64_t i = 0; i < n; ++i) value[i] = f.fwd(h[i]), slope[i] = f.slope(h[i]);
}

/// n elements x(i); param(i) is the parameter of element i. Returns how many x are not finite.
template <class T, class Out, class X, class Param>
int64_t forward_range(const X& x, Out* y, int64_t n, T shift, const Param& param) {
  using Ste = UniformSte<MaskRule::clip_then_round>;  // all mask rules give the same levels
  constexpr T largest = std::numeric_limits<T>::max();
  int32_t bad = 0;
  for (int64_t i = 0; i < n; ++i) {
    const T v = x(i);
    if constexpr (std::is_floating_point_v<Out>)
      y[i] = Ste::fwd(v, param(i), RoundEven{}, i);
    else
      y[i] = Out(int32_t(Ste::level(v, param(i), RoundEven{}, i) - shift));
    bad += !(math::abs(v) <= largest);
  }
  return bad;
}

/// Work is cut into pieces of runs that share a group, or of rows in which every element has its own.
template <class T, class Out>
void forward_typed(const LsqFwdArgs& a) {
  const LsqCall& c = a.c;
  const bool own_group = c.inner == 1 && c.groups > 1;
  const int64_t run = own_group ? c.groups : c.inner, piece = std::min(run, kChunk);
  const int64_t pieces = ceil_div(run, piece), runs = c.x.numel() / run;
  const T *const x = c.x.as<T>(), *const before = c.before.as<T>();
  Out* const y = a.y.as<Out>();
  cpu::parallel_wide(runs * pieces, std::max<int64_t>(1, cpu::kGrain / piece), [&](int64_t b, int64_t e) {
    int64_t bad = 0;
    for (int64_t item = b; item < e; ++item) {
      const int64_t r = item / pieces, first = item % pieces * piece, n = std::min(piece, run - first);
      const int64_t flat = r * run + first;
      const auto quantize = [&](const auto& param) {
        if (c.source == LsqSource::gelu) {
          T made[kChunk];
          gelu_chunk(x + flat, n, made, static_cast<T*>(nullptr));
          bad += forward_range(Plain<T>{made}, y + flat, n, T(a.shift), param);
          return;
        }
        bad += before ? forward_range(Shifted<T>{x + flat, before + first}, y + flat, n, T(a.shift), param)
                      : forward_range(Plain<T>{x + flat}, y + flat, n, T(a.shift), param);
      };
      if (own_group)
        quantize([&](int64_t i) { return lsq_param<T>(c, first + i); });
      else
        quantize([p = lsq_param<T>(c, r % c.groups)](int64_t) { return p; });
    }
    if (bad) __atomic_fetch_add(a.bad, bad, __ATOMIC_RELAXED);
  });
}

void forward_cpu(const LsqFwdArgs& a, Stream) {
  if (a.c.x.numel() == 0) return;
  if (a.y.dtype == DType::f64)
    forward_typed<double, double>(a);
  else if (a.y.dtype == DType::f32)
    forward_typed<float, float>(a);
  else if (a.y.dtype == DType::u8)
    forward_typed<float, uint8_t>(a);
  else
    forward_typed<float, int8_t>(a);
}

template <class T>
void store(const Pack<T, 3>& v, T* to, int64_t stride) {
  to[0] = v[0], to[stride] = v[1], to[2 * stride] = v[2];
}
template <class T>
void store(T v, T* to, int64_t stride) {
  to[0] = v, to[stride] = to[2 * stride] = 0;
}

/// One group, x = gelu(h).
template <bool Edges, class T>
void backward_gelu(const LsqBwdArgs& a) {
  const TieWeights<T> tie = TieWeights<T>::of(a.c.ties);
  const QParam<T> p = lsq_param<T>(a.c, 0);
  const T *const h = a.c.x.as<T>(), *const gy = a.gy.as<T>();
  T* const dh = a.dx.as<T>();
  const auto total = cpu::sum_chunks(a.c.inner, [=](int64_t begin, int64_t end) {
    T x[kChunk], slope[kChunk], gx[kChunk];
    gelu_chunk(h + begin, end - begin, x, slope);
    const auto sums = cpu::detail::sum_chunk(0, end - begin, [&, g = gy + begin](int64_t i) {
      return lsq_bwd_element<MaskRule::clip_then_round, Edges>(x[i], g, gx, i, p, tie);
    });
    if (dh)
      for (int64_t i = 0; i < end - begin; ++i) dh[begin + i] = gx[i] * slope[i];
    return sums;
  });
  T* const sums = a.sums.as<T>();
  if constexpr (Edges)
    store(total, sums, 1);
  else
    store(total.v[0], sums, 1);
}

/// X: Plain or Shifted.
template <MaskRule M, bool Edges, class X, class T>
void backward_masked(const LsqBwdArgs& a) {
  const LsqCall& c = a.c;
  const TieWeights<T> tie = TieWeights<T>::of(c.ties);
  const T *const x = c.x.as<T>(), *const before = c.before.as<T>(), *const gy = a.gy.as<T>();
  const auto from = [x, before](int64_t i) {
    if constexpr (std::is_same_v<X, Shifted<T>>)
      return X{x + i, before};
    else
      return X{x + i};
  };
  T *const dx = a.dx.as<T>(), *const sums = a.sums.as<T>(), *const partial = a.partial.as<T>();
  const int64_t runs = c.outer * c.groups, groups = c.groups;
  if (c.inner == 1 && groups > 1) {  // every element of a row has its own group: column sums
    cpu::columns(
        c.outer, groups,
        [=](int64_t o, int64_t g) {
          return lsq_bwd_element<M, true>(from(o * groups)(g), gy, dx, o * groups + g, lsq_param<T>(c, g),
                                          tie);
        },
        sums, sums + groups, sums + 2 * groups);
    return;
  }
  if (runs == 1) {
    const QParam<T> p = lsq_param<T>(c, 0);
    const auto total =
        dx ? cpu::sum(c.inner,
                      [=](int64_t i) { return lsq_bwd_element<M, Edges>(from(0)(i), gy, dx, i, p, tie); })
           : cpu::sum(c.inner, [=](int64_t i) {
               return lsq_bwd_element<M, Edges>(from(0)(i), gy, static_cast<T*>(nullptr), i, p, tie);
             });
    store(total, sums, 1);
    return;
  }
  cpu::rows(runs, c.inner, [=](const cpu::Row& row, int64_t r) {
    const QParam<T> p = lsq_param<T>(c, r % groups);
    const X xr = from(r * c.inner);
    const T* const gr = gy + r * c.inner;
    T* const dr = dx ? dx + r * c.inner : nullptr;
    store(row.sum(c.inner, [=](int64_t i) { return lsq_bwd_element<M, Edges>(xr(i), gr, dr, i, p, tie); }),
          partial + r, runs);
  });
  cpu::columns(
      c.outer, groups,
      [=](int64_t o, int64_t g) {
        const T* const at = partial + o * groups + g;
        return Pack<T, 3>{{at[0], at[runs], at[2 * runs]}};
      },
      sums, sums + groups, sums + 2 * groups);
}

template <MaskRule M>
void backward_ruled(const LsqBwdArgs& a) {
  dispatch_real(a.gy.dtype, [&]<class T>(T) {
    if constexpr (M == MaskRule::clip_then_round) {
      if (a.c.source == LsqSource::gelu)
        return a.edges ? backward_gelu<true, T>(a) : backward_gelu<false, T>(a);
      if (a.c.before.data) return backward_masked<M, false, Shifted<T>, T>(a);
    }
    if (a.edges)
      backward_masked<M, true, Plain<T>, T>(a);
    else
      backward_masked<M, false, Plain<T>, T>(a);
  });
}

void finish_cpu(const LsqFinishArgs& a, Stream) {
  if (!a.out.wanted()) return;
  dispatch_real(a.sums.dtype, [&]<class T>(T) {
    for (int64_t i = 0; i < lsq_output_count(a.out); ++i) lsq_clear<T>(a.out, i);
    for (int64_t g = 0; g < a.c.groups; ++g) lsq_finish_group<T>(a, g);
  });
}

void backward_cpu(const LsqBwdArgs& a, Stream) {
  dispatch_mask(a.c.mask, [&](auto rule) { backward_ruled<decltype(rule)::value>(a); });
  finish_cpu({a.c, a.sums, a.out}, {});
}

void gather_cpu(const LsqGatherArgs& a, Stream) {
  dispatch_real(a.out.dtype, [&]<class T>(T) {
    for (int64_t g = 0; g < lsq_gather_count(a); ++g) lsq_gather_group<T>(a, g);
  });
}

}  // namespace

constinit KernelSlot<LsqFwdArgs> lsq_fwd{"fake_quant_lsq.fwd", forward_cpu};
constinit KernelSlot<LsqBwdArgs> lsq_bwd{"fake_quant_lsq.bwd", backward_cpu};
constinit KernelSlot<LsqFinishArgs> lsq_finish{"fake_quant_lsq.finish", finish_cpu};
constinit KernelSlot<LsqGatherArgs> lsq_gather{"fake_quant_lsq.scale", gather_cpu};

}  // namespace lowbit
