#include "quant/quantizer/ofq_quantizer.h"

#include <algorithm>
#include <cmath>

#include "autograd/core/node.h"
#include "autograd/ops/broadcast.h"
#include "autograd/ops/pointwise.h"
#include "autograd/ops/shape.h"
#include "quant/observer/statistics.h"
#include "quant/ops/statsq.h"

namespace lowbit {
namespace {

constexpr float kScaleFloor = 1e-5f, kNegative = -1e-5f;
constexpr float kFarOutside = 0x1p100f;  ///< over every level at every scale, still finite

/// Values of the signs of v beyond all levels: every element is clipped, so that y = ±s and nothing but the
/// scale receives a gradient.
Variable far_signs(const Tensor& v) {
  Tensor y = v.clone();
  float* p = y.data<float>();
  for (int64_t i = 0; i < y.numel(); ++i) p[i] = p[i] > 0 ? kFarOutside : (p[i] < 0 ? -kFarOutside : p[i]);
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

bool OfqQuantizer::initialised() const {
  const std::vector<float> s = s_.data().to_vector<float>();
  return std::any_of(s.begin(), s.end(), [](float v) { return v != 0; });
}

Levels OfqQuantizer::levels() const {
  const bool is_signed = signed_ ? signed_->item<float>() != 0 : spec().is_signed;
  if (spec().bits == 1) return {is_signed ? -1 : 0, 1};
  return Levels::of(spec().bits, is_signed);
}

LsqSettings OfqQuantizer::settings() const {
  LsqSettings s;
  s.name = label();
  s.axis = spec().axis, s.groups = spec().groups;
  s.levels = {levels()};
  s.ties = TiePolicy::inclusive;
  s.published_scale = config_.published_scale;
  return s;
}

Variable OfqQuantizer::floored_scale() const {
  std::vector<float> s = s_.data().to_vector<float>();
  for (float& v : s) v = v < kScaleFloor ? kScaleFloor : v;
  return straight_through(s_, Tensor::from(std::span<const float>(s), s_.shape(), s_.device()));
}

Variable OfqQuantizer::shifted(const Variable& x, const Variable* bias) const {
  if (!bias) return x;
  const Shape& s = config_.shift;
  if (s.ndim() == 1) return add(x, *bias);
  const Variable shift = reshape(*bias, {s[0], s[1]});
  if (x.size(-2) == s[0]) return add(x, shift);
  const Shape& whole = x.shape();  // rows of several heads in one dimension
  return reshape(add(reshape(x, {x.numel() / s.numel(), s[0], s[1]}), shift), {whole[0], whole[1], whole[2]});
}

void OfqQuantizer::prepare(const Tensor& v) {
  const int axis = spec().axis;
  LOWBIT_CHECK(axis == Coded::kPerTensor || (v.ndim() >= -axis && v.size(axis) == spec().groups), shape,
               label(), "x must have the ", spec().groups, " positions of the scales along dimension ", axis,
               " (got x=", v.str(), ")");
  if (signed_ && signed_->item<float>() == 0 && extrema(v).lo[0] < kNegative) signed_->fill(1);
  if (initialised()) return;
  const Levels l = levels();
  const bool four = l.lo == 0 && axis != Coded::kPerTensor && !signed_;
  const Tensor mean = finite_mean_abs(v, group_layout(v.shape(), axis, spec().groups, label()), label());
  std::vector<float> s = mean.to_vector<float>();
  for (float& m : s) m = (four ? 4 : 2) * m / float(std::sqrt(double(l.hi)));
  s_.mutable_data().copy_from(Tensor::from(std::span<const float>(s), s_.shape()));
  note("initialised from " + v.str());
}

double OfqQuantizer::gradient_factor(const Tensor& v) const {
  return 1 / std::sqrt(levels().hi * (double(v.numel()) / double(spec().groups)));
}

Variable OfqQuantizer::quantized(const Variable& v) const {
  LsqSettings s = settings();
  const Levels l = s.levels[0];
  s.grad_scale = Tensor::full({1}, gradient_factor(v.data()), v.dtype(), v.device());
  // A shift would undo codes at once, and linear() cannot flatten codes with a scale per token.
  const bool flattened = spec().axis != Coded::kPerTensor && v.ndim() < 4;
  s.codes = spec().is_weight ? CodeType::i8 : (after_ || flattened ? CodeType::floats : CodeType::u8);
  const bool sign = spec().bits == 1 && l.lo < 0;
  return fake_quant_lsq(sign ? far_signs(v.data()) : v, floored_scale(), {}, {}, s);
}

Quantizer::TrainedScale OfqQuantizer::trained_scale(const Tensor& x) const {
  if (!s_.requires_grad()) return {};
  TrainedScale s{s_, {}, std::vector<float>(size_t(s_.numel()), float(gradient_factor(x)))};
  for (int64_t g = 0; g < s_.numel(); ++g) s.index.push_back(g);
  return s;
}

Variable OfqQuantizer::fake_quant(const Variable& x) {
  const Variable v = shifted(x, before_);
  prepare(v.data());
  return shifted(quantized(v), after_);
}

int64_t OfqQuantizer::stored_values() const {
  return s_.numel() + (before_ ? before_->numel() : 0) + (after_ ? after_->numel() : 0);
}

double OfqQuantizer::clipped_share(const Tensor& x) const {
  const NoGrad off;
  return lowbit::clipped_share(shifted(Variable(x), before_).data(), floored_scale().data(), {}, settings());
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
