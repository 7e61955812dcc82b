#include "quant/quantizer/ofq_quantizer.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "autograd/core/node.h"
#include "autograd/ops/broadcast.h"
#include "autograd/ops/pointwise.h"
#include "autograd/ops/shape.h"
#include "autograd/ops/shift.h"
#include "quant/observer/statistics.h"
#include "quant/ops/binary.h"
#include "quant/ops/statsq.h"
#include "tensor/core/constant.h"

namespace lowbit {
namespace {

constexpr float kScaleFloor = 1e-5f, kNegative = -1e-5f;

/// Values of the signs of v beyond all levels.
Variable far_signs(const Tensor& v) {
  Tensor y = Tensor::empty(v.shape(), v.dtype(), v.device());
  far_sign({y.mutable_view(), v.view()}, v.device());
  return Variable(y);
}

}  // namespace

OfqQuantizer::OfqQuantizer(const OfqConfig& c)
    : Quantizer(c.spec),
      config_(c),
      s_(param(join_name(c.name, "s"), Tensor::zeros({c.spec.groups}), false)) {
  LOWBIT_CHECK(c.spec.bits >= 1 && c.spec.bits <= 8, usage, "quantizer", "bits must lie in [1, 8] (got ",
               c.spec.bits, ")");
  if (c.image) signed_ = &buffer(join_name(c.name, "signed"), Tensor::zeros({1}));
  const auto shift = [&](const std::string& name) {
    return name.empty() ? nullptr : &param(join_name(name, "bias"), Tensor::zeros({c.shift.numel()}), false);
  };
  before_ = shift(c.before), after_ = shift(c.after);
}

void OfqQuantizer::on_state(QuantState, QuantState to) {
  for (Variable* v : {&s_, before_, after_})
    if (v) v->set_requires_grad(to == QuantState::learned);
}

/// Training moves the scales but never back to all zeros: the host looks until they are there.
bool OfqQuantizer::initialised() const {
  if (initialised_) return true;
  const std::vector<float> s = s_.data().to_vector<float>();
  return initialised_ = std::any_of(s.begin(), s.end(), [](float v) { return v != 0; });
}

Levels OfqQuantizer::levels() const {
  const bool is_signed = signed_ ? known_signed_.of(*signed_)[0] != 0 : spec().is_signed;
  if (spec().bits == 1) return {is_signed ? -1 : 0, 1};
  return Levels::of(spec().bits, is_signed);
}

LsqSettings OfqQuantizer::settings() const {
  LsqSettings s;
  s.name = label();
  s.axis = spec().axis, s.groups = spec().groups;
  s.slots = scale_order();
  s.levels = {levels()};
  s.ties = TiePolicy::inclusive;
  s.published_scale = config_.published_scale;
  return s;
}

Variable OfqQuantizer::floored_scale() const {
  const Tensor& s = s_.data();
  Tensor floored = Tensor::empty(s.shape(), s.dtype(), s.device());
  clamp_fwd({{double(kScaleFloor), INFINITY}, floored.mutable_view(), s.view()}, s.device());
  return straight_through(s_, std::move(floored));
}

Variable OfqQuantizer::shifted(const Variable& x, const Variable* bias) const {
  if (!bias) return x;
  const Shape& s = config_.shift;
  if (s.ndim() == 1) return shift(x, *bias);
  return shift(x, per_head() ? reshape(*bias, {s[0], 1, s[1]}) : reshape(*bias, {s[0], s[1]}));
}

Variable OfqQuantizer::rows(const Variable& v) const {
  return per_head() ? reshape(v, {-1, v.size(-3) * v.size(-2), v.size(-1)}) : v;
}

std::vector<int> OfqQuantizer::scale_order() const {
  if (!per_head()) return {};
  const int heads = int(config_.shift[0]), tokens = int(spec().groups) / heads;
  std::vector<int> order;
  for (int h = 0; h < heads; ++h)
    for (int t = 0; t < tokens; ++t) order.push_back(t * heads + h);
  return order;
}

void OfqQuantizer::prepare(const Variable& v) {
  const int axis = spec().axis;
  LOWBIT_CHECK(axis == Coded::kPerTensor || (v.ndim() >= -axis && v.size(axis) == spec().groups), shape,
               label(), "x must have the ", spec().groups, " positions of the scales along dimension ", axis,
               " (got x=", v.str(), ")");
  if (signed_ && known_signed_.of(*signed_)[0] == 0 && extrema(v.data()).lo[0] < kNegative) signed_->fill(1);
  if (initialised()) return;
  const Levels l = levels();
  const bool four = l.lo == 0 && axis != Coded::kPerTensor && !signed_;
  const Tensor mean =
      finite_mean_abs(v.data(), group_layout(v.shape(), axis, spec().groups, label()), label());
  const std::vector<float> found = mean.to_vector<float>();
  const std::vector<int> order = scale_order();
  std::vector<float> s(found.size());
  for (size_t i = 0; i < s.size(); ++i)
    s[order.empty() ? i : size_t(order[i])] = (four ? 4 : 2) * found[i] / float(std::sqrt(double(l.hi)));
  s_.mutable_data().copy_from(Tensor::from(std::span<const float>(s), s_.shape()));
  note("initialised from " + v.str());
}

double OfqQuantizer::gradient_factor(const Variable& v) const {
  return 1 / std::sqrt(levels().hi * (double(v.numel()) / double(spec().groups)));
}

Variable OfqQuantizer::quantized(const Variable& v) const {
  LsqSettings s = settings();
  const float factor = float(gradient_factor(v));
  s.grad_scale = constant(std::span(&factor, 1), {1}, v.device());
  s.codes = spec().is_weight ? CodeType::i8 : config_.image ? CodeType::floats : CodeType::u8;
  if (shifts_inside()) return fake_quant_lsq(v, *before_, floored_scale(), s);
  return fake_quant_lsq(signs() ? far_signs(v.data()) : v, floored_scale(), {}, {}, s);
}

bool OfqQuantizer::signs() const { return spec().bits == 1 && levels().lo < 0; }

bool OfqQuantizer::shifts_inside() const {
  return before_ && config_.shift.ndim() == 1 && (spec().axis == -1 || spec().axis == -2) && !signs();
}

Quantizer::TrainedScale OfqQuantizer::trained_scale(const Tensor& x) const {
  if (!s_.requires_grad()) return {};
  const Shape groups{s_.numel()};
  std::vector<int64_t> index(size_t(s_.numel()));
  std::iota(index.begin(), index.end(), 0);
  const std::vector<float> factors(index.size(), float(gradient_factor(Variable(x))));
  return {s_, constant(std::span<const int64_t>(index), groups, x.device()),
          constant(std::span<const float>(factors), groups, x.device())};
}

Variable OfqQuantizer::fake_quant(const Variable& x) {
  LOWBIT_CHECK(!per_head() || (x.ndim() == 4 && x.size(1) == config_.shift[0]), shape, label(),
               "x must be [B, ", config_.shift[0], " heads, tokens, C] (got x=", x.str(), ")");
  const bool inside = shifts_inside();
  const Variable v = inside ? x : rows(shifted(x, before_));
  prepare(inside && !initialised() ? shifted(x, before_) : v);
  Variable y = quantized(v);
  if (per_head()) y = reshape(y, {x.size(0), x.size(1), x.size(2), x.size(3)});
  return shifted(y, after_);
}

int64_t OfqQuantizer::stored_values() const {
  return s_.numel() + (before_ ? before_->numel() : 0) + (after_ ? after_->numel() : 0);
}

double OfqQuantizer::clipped_share(const Tensor& x) const {
  const NoGrad off;
  const Variable v = rows(shifted(Variable(x), before_));
  return lowbit::clipped_share(v.data(), floored_scale().data(), {}, settings());
}

StatsqQuantizer::StatsqQuantizer(const QuantSpec& spec) : Quantizer(spec) {
  buffer("clip_val", Tensor::full({1}, 2));
}

Variable StatsqQuantizer::fake_quant(const Variable& w) {
  return statsq(w, spec().bits, label(), &last_scale_);
}

void StatsqQuantizer::set_scale(const Tensor&) {
  fail(ErrorKind::usage, label(), "the scale of StatsQ is computed from each input");
}

double StatsqQuantizer::clipped_share(const Tensor& w) const {
  const GroupLayout l = group_layout(w.shape(), -2, w.size(-2), label());
  const Tensor scale = finite_mean_abs(w, l, label(), 2);
  LsqSettings s;  // u = w / a, clipped to [−1, 1]
  s.name = label(), s.axis = -2, s.groups = l.groups, s.levels = {Levels{-1, 1}};
  return lowbit::clipped_share(w, scale, {}, s);
}

}  // namespace lowbit
