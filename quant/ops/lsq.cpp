#include "quant/ops/lsq.h"

#include <cmath>

#include "autograd/ops/check.h"
#include "autograd/ops/deferred.h"
#include "autograd/ops/reduce.h"
#include "quant/ops/attention_probs.h"
#include "quant/ops/layer_norm_codes.h"
#include "quant/ops/lsq_params.h"
#include "quant/ops/mean_abs.h"
#include "tensor/core/constant.h"
#include "tensor/core/context.h"
#include "tensor/engine/pointwise.h"

namespace lowbit {
namespace {

/// One group, or one per index of the axis: what Coded can express.
bool per_index(const Shape& x, const LsqSettings& s) { return s.groups == 1 || s.groups == x[s.axis]; }

Levels hull(const std::vector<Levels>& all) {
  Levels h = all[0];
  for (const Levels& l : all) h.lo = std::min(h.lo, l.lo), h.hi = std::max(h.hi, l.hi);
  return h;
}

/// A view that gives every group the one value of t, or its own.
View per_group(const Tensor& t, int64_t groups) { return t.expand({groups}).view(); }

Tensor slot_tensor(const LsqSettings& s, const Shape& scale, Device d) {
  std::vector<int32_t> slots;
  for (int64_t g = 0; g < s.groups; ++g) {
    const int slot = s.slots.empty() ? int(g) : s.slots[size_t(g)];
    LOWBIT_CHECK(slot >= 0 && slot < scale.numel(), value, s.name, "group ", g, " needs scale ", slot,
                 " (got scale=", scale.str(), ")");
    slots.push_back(slot);
  }
  return constant(std::span<const int32_t>(slots), {s.groups}, d);
}

bool distinct(const std::vector<int>& slots, int64_t scales) {
  std::vector<bool> seen(size_t(scales), false);
  for (const int slot : slots) {
    if (seen[size_t(slot)]) return false;
    seen[size_t(slot)] = true;
  }
  return true;
}

/// lo and hi of every group, or undefined when all are equal.
Tensor bounds_tensor(const LsqSettings& s, DType dtype, Device d) {
  if (s.levels.size() == 1) return {};
  Tensor bounds;
  dispatch_real(dtype, [&]<class T>(T) {
    std::vector<T> v;
    for (const Levels& l : s.levels) v.push_back(T(l.lo));
    for (const Levels& l : s.levels) v.push_back(T(l.hi));
    bounds = constant(std::span<const T>(v), {2, s.groups}, d);
  });
  return bounds;
}

void check_inputs(const Variable& x, const Variable& scale, const Variable& offset, const Variable& nbits,
                  const LsqSettings& s) {
  LOWBIT_CHECK(x.dtype() == DType::f32 || x.dtype() == DType::f64, dtype, s.name,
               "x must be f32 or f64 (got ", x.str(), ")");
  LOWBIT_CHECK(scale.dtype() == x.dtype() && scale.ndim() == 1, dtype, s.name,
               "scale must be a vector of x's dtype (got x=", x.str(), ", scale=", scale.str(), ")");
  LOWBIT_CHECK(!offset.defined() || offset.shape() == scale.shape(), shape, s.name,
               "offset must have the shape of scale (got offset=", offset.str(), ", scale=", scale.str(),
               ")");
  LOWBIT_CHECK(!nbits.defined() || nbits.numel() == 1 || nbits.numel() == s.groups, shape, s.name,
               "nbits must hold one value or one per group (got nbits=", nbits.str(), ", groups=", s.groups,
               ")");
  LOWBIT_CHECK(s.levels.size() == 1 || int64_t(s.levels.size()) == s.groups, value, s.name,
               "levels must be given once or per group (got ", s.levels.size(), " for ", s.groups,
               " groups)");
  LOWBIT_CHECK(s.slots.empty() || int64_t(s.slots.size()) == s.groups, value, s.name,
               "slots must be given per group (got ", s.slots.size(), " for ", s.groups, " groups)");
  for (const Levels& l : s.levels)
    LOWBIT_CHECK(l.lo <= 0 && l.hi > l.lo, value, s.name, "levels must satisfy lo <= 0, lo < hi (got ", l.lo,
                 " … ", l.hi, ")");
}

template <class T>
void check_scale_typed(const Tensor& a, const char* what, bool positive, std::string_view name) {
  const T* v = a.data_const<T>();
  for (int64_t g = 0; g < a.numel(); ++g)
    LOWBIT_CHECK(std::isfinite(v[g]) && (!positive || v[g] > 0), numeric, name, what, " must be ",
                 positive ? "positive and finite" : "finite", " (got ", v[g], " for group ", g, ")");
}

/// On the CPU only: reading a device's values would wait for it.
void check_scale(const Tensor& a, const char* what, bool positive, std::string_view name) {
  if (a.device().is_cuda()) return;
  if (a.dtype() == DType::f64)
    check_scale_typed<double>(a, what, positive, name);
  else
    check_scale_typed<float>(a, what, positive, name);
}

View view_of(Tensor& t) { return t.defined() ? t.mutable_view() : View{}; }
View view_of(const Tensor& t) { return t.defined() ? t.view() : View{}; }

struct FakeQuantNode final : Node {
  SavedValue x;
  LsqParams params;
  LsqPrepared prepared;
  const char* name() const override { return "fake_quant_lsq"; }
  bool postponed(const Tensor& gy, GradSink& gx);
  void backward(const Tensor& gy, GradSink& gx) override;
  void release() override { x.release(); }
  std::vector<Tensor> saved() const override { return {x.peek(), params.scale}; }
};

/// Nothing has reached the gradients of x and scale yet, so that what comes later need not be added.
bool FakeQuantNode::postponed(const Tensor& gy, GradSink& gx) {
  if (!prepared.later) return false;
  if (prepared.later->waiting(prepared.item)) prepared.later->flush();  // x was quantized twice
  if (!gx.wants(0) || !gx.wants(1) || gx.wants(2) || gx.wants(3)) return false;
  Tensor dx = gx.alloc(0), dscale = gx.alloc(1);
  if (dx.view().data != prepared.dx || dscale.view().data != prepared.dscale) return false;
  prepared.later->take(prepared.item, gy);
  gx.add(0, dx), gx.add(1, dscale);
  return true;
}

void FakeQuantNode::backward(const Tensor& gy, GradSink& gx) {
  if (postponed(gy, gx)) return;
  LsqCall c = params.call;
  const Tensor input = x.get(name(), 0);
  c.x = input.view();
  const Tensor& before = params.before;
  const bool shift = before.defined() && gx.wants(4);
  Tensor dx = gx.wants(0) || shift ? gradient_over(input, gx, 0) : Tensor{};
  Tensor partial = Tensor::empty({lsq_workspace(c)}, gy.dtype(), gy.device());
  Tensor sums = Tensor::empty({3, c.groups}, gy.dtype(), gy.device());
  const LsqParameterGradients parameters(params, gx);
  lsq_bwd({c, gy.view(), view_of(dx), partial.mutable_view(), sums.mutable_view(), gx.wants(2) || gx.wants(3),
           parameters.out},
          gy.device());
  if (dx.defined()) gx.add(0, dx);
  if (shift) gx.add(4, reduce_to(dx, before.shape()));
  parameters.add(gx);
}

void run_forward(const LsqParams& p, const Tensor& x, Tensor& y, int shift, const LsqSettings& s) {
  LsqCall c = p.call;
  c.x = x.view();
  int64_t bad = 0;
  lsq_fwd({c, y.mutable_view(), shift, &bad}, y.device());
  check_finite_count(bad, y.numel(), s);
}

/// The codes straight from the input of a layer norm that nobody has asked for.
bool norm_forward(const Variable& x, const LsqParams& p, Coded& c, const LsqSettings& s) {
  const auto* const norm = dynamic_cast<const DeferredLayerNorm*>(x.deferred());
  if (!norm || x.numel() == 0) return false;
  const bool per_column = p.call.inner == 1 && p.call.groups == x.size(-1);
  if (p.call.groups > 1 && !per_column && p.call.inner % x.size(-1) != 0) return false;
  int64_t bad = 0;
  layer_norm_codes({norm->args(), {p.call, c.codes.mutable_view(), int(c.shift), &bad}}, x.device());
  check_finite_count(bad, x.numel(), s);
  return true;
}

Variable quantized(const Variable& x, const Variable& scale, const Variable& offset, const Variable& nbits,
                   const Variable& before, const LsqSettings& s) {
  check_inputs(x, scale, offset, nbits, s);
  if (!before.defined())
    if (Variable codes = attention_probs(x, scale, offset, nbits, s); codes.defined()) return codes;
  const auto* const activation = dynamic_cast<const DeferredGelu*>(x.deferred());
  const bool inside = activation && !before.defined() && s.mask == MaskRule::clip_then_round &&
                      (s.groups == 1 || x.device().is_cuda());
  const Variable from = inside ? activation->x : x;
  const auto node = std::make_shared<FakeQuantNode>();
  LsqParams& params = node->params;
  params =
      lsq_params(x.shape(), x.dtype(), x.device(), scale.data(), offset.defined() ? offset.data() : Tensor{},
                 s, before.defined() ? before.data() : Tensor{});
  if (inside) params.call.source = LsqSource::gelu;
  const bool coded = lsq_codable(x, offset.defined(), s),
             keep = needs_grad({from, scale, offset, nbits, before});
  const bool ready = coded && s.prepared && s.prepared->codes.defined();
  Coded c;
  if (coded) c = lsq_codes(params, s);
  if (ready)
    node->prepared = *s.prepared, c.codes = s.prepared->codes;
  else if (coded)
    c.codes = empty_codes(s, x.shape(), x.device());
  Tensor y;
  if (!ready && (!coded || !norm_forward(x, params, c, s))) {
    const Tensor input = from.data().packed();
    if (!coded) y = Tensor::empty(input.shape(), input.dtype(), input.device());
    run_forward(params, input, coded ? c.codes : y, coded ? int(c.shift) : 0, s);
  }
  if (keep) node->x.set(from);
  if (coded) return record(std::move(c), keep ? node : nullptr, {from, scale, offset, nbits, before});
  return record(std::move(y), keep ? node : nullptr, {from, scale, offset, nbits, before});
}

}  // namespace

LsqParams lsq_params(const Shape& x, DType dtype, Device d, const Tensor& scale, const Tensor& offset,
                     const LsqSettings& s, const Tensor& before) {
  LsqParams p;
  const GroupLayout l = group_layout(x, s.axis, s.groups, s.name);
  p.slots = slot_tensor(s, scale.shape(), d);
  p.bounds = bounds_tensor(s, dtype, d);
  p.own_slots = distinct(s.slots, scale.numel());
  p.grad_scale = s.grad_scale;
  if (before.defined()) p.before = before.clone();
  const auto gather = [&](const Tensor& from, bool published, double smallest) {
    Tensor out = Tensor::empty({s.groups}, dtype, d);
    lsq_gather({from.view(), p.slots.view(), published ? per_group(s.grad_scale, s.groups) : View{},
                out.mutable_view(), smallest},
               d);
    return out;
  };
  p.scale =
      s.prepared ? s.prepared->scale : gather(scale, s.published_scale && s.grad_scale.defined(), s.smallest);
  check_scale(p.scale, "scale", true, s.name);
  if (offset.defined()) {
    p.offset = s.prepared ? s.prepared->offset : gather(offset, false, 0);
    check_scale(p.offset, "offset", false, s.name);
  }
  const Levels h = hull(s.levels);
  const Tensor &offsets = p.offset, &bounds = p.bounds, &shifts = p.before;
  p.call = {View{},       p.scale.view(), view_of(offsets), view_of(bounds), view_of(shifts), double(h.lo),
            double(h.hi), l.outer,        l.groups,         l.inner,         s.mask,          s.ties};
  return p;
}

bool lsq_codable(const Variable& x, bool has_offset, const LsqSettings& s) {
  const Levels h = hull(s.levels);
  if (s.codes == CodeType::floats || x.dtype() != DType::f32 || !context().integer_products) return false;
  if (!per_index(x.shape(), s)) return false;
  if (has_offset && s.groups > 1 && s.axis != -1) return false;
  return s.codes == CodeType::u8 ? h.hi - h.lo <= 255 : h.lo >= -128 && h.hi <= 127;
}

Coded lsq_codes(const LsqParams& p, const LsqSettings& s) {
  const Levels h = hull(s.levels);
  const int shift = s.codes == CodeType::u8 ? h.lo : 0;
  Coded c;
  c.scale = p.scale, c.offset = p.offset;
  c.shift = shift, c.lo = h.lo - shift, c.hi = h.hi - shift;
  c.scale_axis = s.groups > 1 ? s.axis : Coded::kPerTensor;
  return c;
}

Tensor empty_codes(const LsqSettings& s, const Shape& shape, Device device) {
  return Tensor::empty(shape, s.codes == CodeType::u8 ? DType::u8 : DType::i8, device);
}

LsqParameterGradients::LsqParameterGradients(const LsqParams& p, GradSink& gx) {
  for (int i = 0; i < 3; ++i)
    if (gx.wants(i + 1)) d[i] = gx.alloc(i + 1);
  const int64_t groups = p.call.groups;
  out = {p.slots.view(), p.grad_scale.defined() ? per_group(p.grad_scale, groups) : View{},
         view_of(d[0]),  view_of(d[1]),
         view_of(d[2]),  p.own_slots && (!d[2].defined() || d[2].numel() == groups)};
}

void LsqParameterGradients::add(GradSink& gx) const {
  for (int i = 0; i < 3; ++i)
    if (d[i].defined()) gx.add(i + 1, d[i]);
}

void check_finite_count(int64_t bad, int64_t count, const LsqSettings& s) {
  LOWBIT_CHECK(bad == 0, numeric, s.name, "x must be finite (got ", bad, " non-finite of ", count,
               " values)");
}

Variable fake_quant_lsq(const Variable& x, const Variable& scale, const Variable& offset,
                        const Variable& nbits, const LsqSettings& s) {
  return quantized(x, scale, offset, nbits, {}, s);
}

Variable fake_quant_lsq(const Variable& x, const Variable& before, const Variable& scale,
                        const LsqSettings& s) {
  LOWBIT_CHECK(
      before.ndim() == 1 && x.ndim() > 0 && before.numel() == x.size(-1) && before.dtype() == x.dtype() &&
          s.axis != Coded::kPerTensor && s.groups == x.size(s.axis) && (s.axis == -1 || s.axis == -2) &&
          s.mask == MaskRule::clip_then_round,
      shape, s.name,
      "a shift needs one value per index of the last dimension and one scale per index of one of the "
      "last two (got x=",
      x.str(), ", shift=", before.str(), ", groups=", s.groups, ")");
  return quantized(x, scale, {}, {}, before, s);
}

double clipped_share(const Tensor& x, const Tensor& scale, const Tensor& offset, const LsqSettings& s) {
  if (x.numel() == 0) return 0;
  // With G = 1 the edge sums count the clipped elements.
  const Tensor input = x.packed();
  const LsqParams p = lsq_params(x.shape(), x.dtype(), x.device(), scale, offset, s);
  LsqCall c = p.call;
  c.x = input.view();
  c.mask = MaskRule::clip_then_round, c.ties = TiePolicy::inclusive;
  const Tensor ones = Tensor::full(x.shape(), 1, x.dtype(), x.device());
  Tensor partial = Tensor::empty({lsq_workspace(c)}, x.dtype(), x.device());
  Tensor sums = Tensor::empty({3, c.groups}, x.dtype(), x.device());
  lsq_bwd({c, ones.view(), View{}, partial.mutable_view(), sums.mutable_view(), true, {}}, x.device());
  double total = 0;
  const Tensor host = sums.to(Device{}).cast(DType::f64);
  for (int64_t g = 0; g < c.groups; ++g)
    total += host.data<double>()[c.groups + g] + host.data<double>()[2 * c.groups + g];
  return total / double(x.numel());
}

}  // namespace lowbit
