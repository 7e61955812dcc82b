#pragma once
// Learned-step uniform fake quantization: one op for every group layout.
//
// Shapes   x any shape; seen as [outer, groups, inner] around `axis`: per tensor groups = 1, per channel or
//          token one group per index of the axis, head-wise several consecutive indices per group.
// Forward  u = (x − b) / a,  q = rint(clamp(u, lo, hi)),  y = q·a + b   with the group's scale a, offset b
// and
//          levels lo … hi; true division, half to even. y carries the integer codes q − shift where the
//          layout and Context::integer_products allow it; its floats have the same bits either way.
// Grad     G = dL/dy, m = 1 inside (lo, hi), 0 outside, by `ties` on the edges:
//          dx = m·G,  da = grad_scale·Σ G·(q − m·u),  db = Σ G·(1 − m)
//          dnbits = a·ln2·((hi + 1)·Σ_{u>hi} G(1 − m) + lo·Σ_{u<lo} G(1 − m))   (lo, hi as functions of bits)
// Saves    x (shared with its producer, or made again by it); u is recomputed.
// Fused    x that is a GELU nobody has asked for is made where it is read, and its gradient taken in the same
//          pass; on the CPU for one group, by chunks
// Errors   shape, value; numeric: a scale that is not positive and finite, values of x that are not finite
// Source   Esser et al. 2020 (LSQ), Bhalgat et al. 2020 (LSQ+); docs/methods/lsq.md, docs/methods/vvtq.md

#include <string_view>
#include <type_traits>
#include <vector>

#include "autograd/ops/pointwise.h"
#include "tensor/core/coded.h"
#include "tensor/core/kernel_slot.h"
#include "tensor/core/tensor.h"
#include "tensor/hd/math.h"
#include "tensor/hd/row.h"

namespace lowbit {

class Variable;

/// Which elements the straight-through gradient reaches. clip_then_round: lo ≤ u ≤ hi; round_then_clip:
/// lo ≤ rint(u) ≤ hi; pass_through: all.
enum class MaskRule : uint8_t { clip_then_round, round_then_clip, pass_through };
/// f(std::integral_constant<MaskRule, rule>()).
template <class F>
void dispatch_mask(MaskRule rule, F f) {
  switch (rule) {
    case MaskRule::clip_then_round:
      return f(std::integral_constant<MaskRule, MaskRule::clip_then_round>());
    case MaskRule::round_then_clip:
      return f(std::integral_constant<MaskRule, MaskRule::round_then_clip>());
    case MaskRule::pass_through:
      return f(std::integral_constant<MaskRule, MaskRule::pass_through>());
  }
}
/// The mask where u equals lo or hi exactly (clip_then_round): ½ as min/max split it (VVTQ), 1 (OFQ), 0.
enum class TiePolicy : uint8_t { half, inclusive, exclusive };

/// Integer levels of one group.
struct Levels {
  int lo = -128, hi = 127;
  static Levels of(int bits, bool is_signed) {
    return is_signed ? Levels{-(1 << (bits - 1)), (1 << (bits - 1)) - 1} : Levels{0, (1 << bits) - 1};
  }
  bool operator==(const Levels&) const = default;
};

enum class CodeType : uint8_t { u8, i8, floats };  ///< u8: code = level − lowest level; i8: code = level

/// Gradients of many quantizers computed together, later (quant/lsq_pass.h).
class LsqLater {
 public:
  virtual ~LsqLater() = default;
  /// The gradient gy of member `item`'s codes. What follows from it is written when flush() is called.
  virtual void take(int64_t item, const Tensor& gy) = 0;
  virtual bool waiting(int64_t item) const = 0;
  virtual void flush() = 0;
};

/// What a pass over many quantizers has made for one of them (quant/lsq_pass.h). Undefined: not made.
struct LsqPrepared {
  Tensor scale, offset, factor;  ///< [1]: of the group, LsqSettings::grad_scale
  Tensor codes;                  ///< i8 levels of the input
  const void* input = nullptr;   ///< the data that they belong to
  /// Where backward may leave its work, and the places that it is for: gradients of input and scale.
  LsqLater* later = nullptr;
  int64_t item = 0;
  void *dx = nullptr, *dscale = nullptr;
};

struct LsqSettings {
  std::string_view name = "fake_quant_lsq";  ///< whom an error blames
  int axis = Coded::kPerTensor;              ///< negative; groups divide its extent
  int64_t groups = 1;
  std::vector<Levels> levels = {Levels{}};  ///< one, or one per group
  std::vector<int> slots = {};  ///< group g uses scale[slots[g]] and offset[slots[g]]; empty: scale[g]
  Tensor grad_scale = {};       ///< [1] or [groups]; undefined: 1
  MaskRule mask = MaskRule::clip_then_round;
  TiePolicy ties = TiePolicy::half;
  bool published_scale = false;  ///< a = (s − s·g) + s·g in this order, up to one ulp from s
  double smallest = 0;           ///< scales below become this, in place: VVTQ clamps the parameter itself
  CodeType codes = CodeType::u8;
  const LsqPrepared* prepared = nullptr;  ///< in place of gathering, and of quantizing where it has codes
};

/// scale [S]; offset [S] or undefined; nbits [1] or [groups], or undefined: only receives its gradient.
Variable fake_quant_lsq(const Variable& x, const Variable& scale, const Variable& offset,
                        const Variable& nbits, const LsqSettings& s);

/// The same of x + before, one value per index of the last dimension, for clip_then_round with one scale per
/// index of an axis: the sum is formed where it is read.   Grad  dbefore = dx summed over all other
/// dimensions
Variable fake_quant_lsq(const Variable& x, const Variable& before, const Variable& scale,
                        const LsqSettings& s);

/// Share of elements whose u lies outside [lo, hi], for reports.
double clipped_share(const Tensor& x, const Tensor& scale, const Tensor& offset, const LsqSettings& s);

// ---------------------------------------------------------------- maths, host and device

template <class T>
struct QParam {
  T scale, offset, lo, hi;
};

struct RoundEven {
  template <class T>
  LOWBIT_HD T operator()(T v, int64_t) const {
    return math::rint(v);
  }
};

/// Mask on an edge as a mix of the closed and the open interval.
template <class T>
struct TieWeights {
  T closed, open;
  static LOWBIT_HD TieWeights of(TiePolicy p) {
    return p == TiePolicy::half
               ? TieWeights{T(0.5), T(0.5)}
               : (p == TiePolicy::inclusive ? TieWeights{T(1), T(0)} : TieWeights{T(0), T(1)});
  }
};

template <class T>
struct QGrad {
  T dx, dscale, above, below;  ///< above, below: what reaches hi and lo, the values of clipped elements
};

/// The quantizer of one element. Rounding is a policy, so that a test can freeze it.
template <MaskRule M>
struct UniformSte {
  template <class T, class Round>
  static LOWBIT_HD T level(T x, QParam<T> p, Round round, int64_t i) {
    const T u = (x - p.offset) / p.scale;
    if constexpr (M == MaskRule::round_then_clip) {
      // Rounded values are integers; the quarter moves the kink away from them for frozen rounding.
      const T v = round(u, i);
      return v > p.hi + T(0.25) ? p.hi : (v < p.lo - T(0.25) ? p.lo : v);
    } else {
      const T c = u < p.hi ? u : p.hi;
      return round(c > p.lo ? c : p.lo, i);
    }
  }
  /// Adding the offset, 0 included, turns the level −0 into +0, as integer codes do.
  template <class T, class Round>
  static LOWBIT_HD T fwd(T x, QParam<T> p, Round round, int64_t i) {
    return level(x, p, round, i) * p.scale + p.offset;
  }
  template <class T>
  static LOWBIT_HD QGrad<T> bwd(T gy, T x, QParam<T> p, TieWeights<T> tie) {
    const RoundEven round{};
    const T u = (x - p.offset) / p.scale;
    const T q = level(x, p, round, 0);
    if constexpr (M == MaskRule::pass_through) return {gy, gy * (q - u), T(0), T(0)};
    const T v = M == MaskRule::round_then_clip ? round(u, 0) : u;
    const T closed = M == MaskRule::round_then_clip ? T(1) : tie.closed;
    const T open = M == MaskRule::round_then_clip ? T(0) : tie.open;
    const T m = ((v >= p.lo) & (v <= p.hi) ? closed : T(0)) + ((v > p.lo) & (v < p.hi) ? open : T(0));
    const T rest = gy * (T(1) - m);
    return {m * gy, gy * (q - m * u), v >= p.hi ? rest : T(0), v <= p.lo ? rest : T(0)};
  }
};

// ---------------------------------------------------------------- kernels

/// What the quantizer reads: x itself, or the input h of a GELU, x = gelu(h), whose gradient then belongs to
/// h.
enum class LsqSource : uint8_t { values, gelu };

/// What forward and backward share: x and the groups' parameters.
struct LsqCall {
  View x;              ///< packed; h where source says so
  View scale, offset;  ///< [groups], packed; offset.data null: 0
  View bounds;         ///< [2, groups] lo, hi; null: the two numbers below
  View before;         ///< packed, added to every run of x (every row of groups where inner = 1); null: 0
  double lo, hi;
  int64_t outer, groups, inner;
  MaskRule mask;
  TiePolicy ties;
  LsqSource source = LsqSource::values;  ///< gelu: clip_then_round without before; on the CPU one group
};

struct LsqFwdArgs {
  LsqCall c;
  View y;        ///< packed: values, or codes u8/i8
  int shift;     ///< code = level − shift
  int64_t* bad;  ///< host counter of non-finite x; null on devices
};

/// Where the gradients of the parameters go, from the groups' sums. data null: not wanted.
struct LsqOutputs {
  View slots, grad_scale;        ///< as in LsqGatherArgs; grad_scale.data null: 1
  View dscale, doffset, dnbits;  ///< vectors; entries that no group uses become 0
  bool own;                      ///< no two groups share an entry
  LOWBIT_HD bool wanted() const { return dscale.data || doffset.data || dnbits.data; }
};

struct LsqBwdArgs {
  LsqCall c;
  View gy, dx;   ///< packed; dx.data null: not wanted
  View partial;  ///< workspace of lsq_workspace() elements; begins with [3, outer·groups], one per run
  View sums;     ///< [3, groups]: Σ G(q − m·u), Σ above, Σ below
  bool edges;    ///< false: only the first sum is wanted
  LsqOutputs out;
};

/// Elements of LsqBwdArgs::partial on any device: run results, and the lists of chunks or row blocks.
inline int64_t lsq_workspace(const LsqCall& c) {
  return 3 *
         (c.outer * c.groups + 2 * ceil_div(c.inner, kChunk) + ceil_div(c.outer, kRowBlock) * c.groups + 2);
}

/// out[g] = source[slots[g]], or the published form of it. Entries of source below `smallest` > 0 become it.
struct LsqGatherArgs {
  View source, slots, grad_scale,
      out;  ///< source any stride; slots i32 [groups]; grad_scale [groups], null: exact
  double smallest;
};
/// Threads of a gather: groups, and entries of source.
LOWBIT_HD int64_t lsq_gather_count(const LsqGatherArgs& a) {
  return a.out.shape[0] > a.source.shape[0] ? a.out.shape[0] : a.source.shape[0];
}

/// The second half of a backward by itself, for ops that form the sums in their own way.
struct LsqFinishArgs {
  LsqCall c;
  View sums;  ///< as above
  LsqOutputs out;
};
extern KernelSlot<LsqFwdArgs> lsq_fwd;
extern KernelSlot<LsqBwdArgs> lsq_bwd;
extern KernelSlot<LsqGatherArgs> lsq_gather;
extern KernelSlot<LsqFinishArgs> lsq_finish;

/// View::as() for device code.
template <class T>
LOWBIT_HD T* lsq_data(const View& v) {
  return static_cast<T*>(v.data);
}

template <class T>
LOWBIT_HD T lsq_at(const View& v, int64_t g) {
  return lsq_data<T>(v)[g * v.stride[0]];
}

template <class T>
LOWBIT_HD QParam<T> lsq_param(const LsqCall& c, int64_t g) {
  const T* bounds = lsq_data<T>(c.bounds);
  return {lsq_data<T>(c.scale)[g], c.offset.data ? lsq_data<T>(c.offset)[g] : T(0),
          bounds ? bounds[g] : T(c.lo), bounds ? bounds[c.groups + g] : T(c.hi)};
}

/// How an element becomes x, and how a gradient of x becomes one of the element.
struct LsqValue {
  template <class T>
  LOWBIT_HD static T of(T x) {
    return x;
  }
  template <class T>
  LOWBIT_HD static T back(T g, T /*x*/) {
    return g;
  }
};
struct LsqGelu {
  template <class T>
  LOWBIT_HD static T of(T h) {
    return pointwise::Gelu{}.fwd(h);
  }
  template <class T>
  LOWBIT_HD static T back(T g, T h) {
    return pointwise::Gelu{}.bwd(g, h, T(0));
  }
};

/// Gradient of one element, stored; returns its summands. dx may be null. S: LsqValue or LsqGelu.
template <MaskRule M, bool Edges, class S = LsqValue, class T>
LOWBIT_HD auto lsq_bwd_element(T x, const T* gy, T* dx, int64_t i, QParam<T> p, TieWeights<T> tie) {
  const QGrad<T> g = UniformSte<M>::bwd(gy[i], S::of(x), p, tie);
  if (dx) dx[i] = S::back(g.dx, x);
  if constexpr (Edges)
    return Pack<T, 3>{{g.dscale, g.above, g.below}};
  else
    return g.dscale;
}

/// Number i: clamps source[i] and gathers group i, where there are such. Clamping twice is clamping once, so
/// it does not matter who comes first.
template <class T>
LOWBIT_HD void lsq_gather_group(const LsqGatherArgs& a, int64_t g) {
  const T smallest = T(a.smallest);
  if (smallest > T(0) && g < a.source.shape[0]) {
    T& own = lsq_data<T>(a.source)[g * a.source.stride[0]];
    if (own < smallest) own = smallest;
  }
  if (g >= a.out.shape[0]) return;
  T s = lsq_at<T>(a.source, lsq_data<int32_t>(a.slots)[g]);
  if (smallest > T(0) && s < smallest) s = smallest;
  if (a.grad_scale.data) {
    const T t = s * lsq_at<T>(a.grad_scale, g);
    s = (s - t) + t;
  }
  lsq_data<T>(a.out)[g] = s;
}

/// Entries i of all outputs become 0.
template <class T>
LOWBIT_HD void lsq_clear(const LsqOutputs& out, int64_t i) {
  const View* const all[] = {&out.dscale, &out.doffset, &out.dnbits};
  for (const View* v : all)
    if (v->data && i < v->shape[0]) lsq_data<T>(*v)[i] = T(0);
}
LOWBIT_HD int64_t lsq_output_count(const LsqOutputs& out) {
  int64_t n = 0;
  const View* const all[] = {&out.dscale, &out.doffset, &out.dnbits};
  for (const View* v : all) n = v->data && v->shape[0] > n ? v->shape[0] : n;
  return n;
}

/// Adds the sums of group g into its parameters. Groups that share one come in increasing order.
template <class T>
LOWBIT_HD void lsq_finish_group(const LsqFinishArgs& a, int64_t g) {
  const LsqOutputs& out = a.out;
  const int64_t groups = a.c.groups, slot = lsq_data<int32_t>(out.slots)[g];
  const T* const sum = lsq_data<T>(a.sums);
  const T factor = out.grad_scale.data ? lsq_at<T>(out.grad_scale, g) : T(1);
  if (out.dscale.data) lsq_data<T>(out.dscale)[slot] += factor * sum[g];
  if (out.doffset.data) lsq_data<T>(out.doffset)[slot] += sum[groups + g] + sum[2 * groups + g];
  if (out.dnbits.data) {
    const QParam<T> p = lsq_param<T>(a.c, g);
    const T ln2 = T(0.693147180559945309);
    lsq_data<T>(out.dnbits)[out.dnbits.shape[0] == 1 ? 0 : g] +=
        p.scale * ln2 * ((p.hi + T(1)) * sum[groups + g] + p.lo * sum[2 * groups + g]);
  }
}

}  // namespace lowbit
