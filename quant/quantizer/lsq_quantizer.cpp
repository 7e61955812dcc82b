#include "quant/quantizer/lsq_quantizer.h"

#include <algorithm>
#include <cmath>

#include "autograd/core/node.h"
#include "quant/ops/l1_factor.h"
#include "tensor/core/constant.h"

namespace lowbit {
namespace {

constexpr float kSmallestScale = 1e-4f;

ScaleFit range_fit(const Tensor& v, Levels l, bool offset) {
  const Extrema e = extrema(v);
  if (offset) {
    const float a = (e.hi[0] - e.lo[0]) / float(l.hi - l.lo);
    return {a, e.lo[0] - a * float(l.lo), 0};
  }
  const float up = std::max(e.hi[0], 0.f) / float(l.hi);
  return {l.lo < 0 ? std::max(up, std::max(-e.lo[0], 0.f) / float(-l.lo)) : up, 0, 0};
}

}  // namespace

LsqConfig vvtq_weight(int bits) {
  LsqConfig c;
  c.spec = {.bits = bits, .is_weight = true};
  c.gradient_scale = GradientScale::l1;
  c.init = ScaleInit::mse;
  return c;
}

LsqConfig vvtq_activation(int bits, bool is_signed, bool offset) {
  LsqConfig c;
  c.spec = {.bits = bits, .is_signed = is_signed, .symmetric = !offset};
  c.gradient_scale = GradientScale::numel_over_qp;
  c.init = ScaleInit::vvtq;
  c.offset = offset;
  return c;
}

LsqConfig headwise(LsqConfig c, int axis, int64_t heads) {
  c.spec.granularity = Granularity::group;
  c.spec.axis = axis, c.spec.groups = heads;
  c.gradient_scale = GradientScale::l1;
  c.learn_bits = true;
  c.offset = false, c.spec.symmetric = true;
  return c;
}

LsqConfig lsq_plain(int bits, bool is_weight, bool is_signed) {
  LsqConfig c;
  c.spec = {.bits = bits, .is_signed = is_signed, .is_weight = is_weight};
  c.clamp_scale = false;
  return c;
}

LsqConfig lsq_plus(int bits, bool is_weight, bool is_signed) {
  LsqConfig c = lsq_plain(bits, is_weight, is_signed);
  c.init = is_weight ? ScaleInit::lsq_plus : ScaleInit::mse;
  c.offset = !is_weight, c.spec.symmetric = is_weight;
  return c;
}

LsqQuantizer::LsqQuantizer(const LsqConfig& c)
    : Quantizer(c.spec),
      config_(c),
      nbits_(param("nbits", Tensor::full({c.spec.groups}, c.spec.bits), false)),
      alpha_(param("alpha", Tensor::zeros({kSlots}), false)),
      beta_(c.offset ? &param("beta", Tensor::zeros({kSlots}), false) : nullptr),
      init_state_(buffer("init_state", Tensor::zeros({1}))) {
  LOWBIT_CHECK(c.spec.bits >= kMinBits && c.spec.bits <= kMaxBits, usage, "quantizer",
               "bits must lie in [2, 8] (got ", c.spec.bits, ")");
  LOWBIT_CHECK(!c.offset || c.spec.groups == 1, value, "quantizer",
               "a head-wise quantizer has no offset (got groups=", c.spec.groups, ")");
  nbits_.set_requires_grad(c.learn_bits);
}

void LsqQuantizer::on_state(QuantState, QuantState to) {
  const bool learn = to == QuantState::learned;
  alpha_.set_requires_grad(learn);
  if (beta_) beta_->set_requires_grad(learn);
  nbits_.set_requires_grad(learn && config_.learn_bits);
}

bool LsqQuantizer::initialised() const { return known_state_.of(init_state_)[0] != 0; }

/// Writes only what changes.
void LsqQuantizer::clamp_bits() {
  std::vector<float> bits = known_bits_.of(nbits_.data());
  for (float& n : bits) n = std::min(std::max(n, float(kMinBits)), float(kMaxBits));
  if (bits == known_bits_.of(nbits_.data())) return;
  nbits_.mutable_data().copy_from(Tensor::from(std::span<const float>(bits), nbits_.shape()));
  known_bits_.tell(nbits_.data(), std::move(bits));
}

std::vector<int> LsqQuantizer::know_widths(std::vector<float> values) {
  known_bits_.tell(nbits_.data(), std::move(values));
  clamp_bits();
  return group_bits();
}

std::vector<int> LsqQuantizer::group_bits() const {
  std::vector<int> bits;
  for (float n : known_bits_.of(nbits_.data()))
    bits.push_back(std::clamp(int(std::nearbyint(n)), kMinBits, kMaxBits));
  return bits;
}

int LsqQuantizer::bits() const {
  const std::vector<int> all = group_bits();
  return *std::max_element(all.begin(), all.end());
}

LsqSettings LsqQuantizer::settings() const {
  LsqSettings s;
  s.name = label();
  s.axis = spec().axis, s.groups = spec().groups;
  s.levels.clear();
  const std::vector<int> bits = group_bits();
  for (int n : bits) {
    s.levels.push_back(Levels::of(n, spec().is_signed));
    s.slots.push_back(n - kMinBits);
  }
  if (std::all_of(bits.begin(), bits.end(), [&](int n) { return n == bits[0]; })) s.levels.resize(1);
  s.mask = config_.mask, s.ties = config_.ties;
  s.published_scale = config_.published_scale;
  s.codes = spec().is_weight ? CodeType::i8 : CodeType::u8;
  return s;
}

double LsqQuantizer::numel_factor(int64_t numel, int highest) const {
  return config_.gradient_scale == GradientScale::numel ? 1 / std::sqrt(double(numel) * highest)
                                                        : 1 / std::sqrt(double(numel)) / highest;
}

Tensor LsqQuantizer::grad_scale(const Variable& v) const {
  std::vector<int> highest;
  for (const int n : group_bits()) highest.push_back(Levels::of(n, spec().is_signed).hi);
  const bool l1 = config_.gradient_scale == GradientScale::l1;
  // Nobody need ask for probabilities to know their sum, so that attention can be one kernel.
  const bool known = l1 && !config_.published_scale && v.numel() > 0 && rows_sum_to_one(v);
  if (l1 && !known)  // all zero: 1, the gradient that it scales is 0
    return l1_factors(v.data().cast(DType::f32), highest, L1Factor::lsq);
  const int64_t groups = int64_t(highest.size());
  std::vector<float> factors;
  for (const int qp : highest)
    factors.push_back(known ? lsq_l1_factor(float(v.numel() / v.size(-1)), groups, qp)
                            : float(numel_factor(v.numel(), qp)));
  return constant(std::span<const float>(factors), {int64_t(factors.size())}, v.device());
}

Quantizer::TrainedScale LsqQuantizer::trained_scale(const Tensor& x) const {
  if (!alpha_.requires_grad()) return {};
  std::vector<int64_t> index;
  for (const int n : group_bits()) index.push_back(n - kMinBits);
  return {alpha_, constant(std::span<const int64_t>(index), {int64_t(index.size())}, x.device()),
          grad_scale(Variable(x))};
}

bool LsqQuantizer::listable(bool of_weight) const {
  if (spec().groups != 1 || spec().is_weight != of_weight || config_.learn_bits) return false;
  return of_weight ? !config_.offset && spec().is_signed
                   : !config_.published_scale && config_.gradient_scale != GradientScale::l1;
}

LsqListItem LsqQuantizer::list_item(const Tensor& w) const {
  const int n = bits();
  const Levels l = Levels::of(n, spec().is_signed);
  LsqListItem item{};
  // The pass clamps the scale in place, as a gather does; the host counts neither as a write.
  item.alpha = static_cast<float*>(alpha_.data().view().data);
  item.beta = beta_ ? beta_->data().data_const<float>() : nullptr;
  item.widths = kSlots, item.slot = n - kMinBits;
  item.factor = !w.defined()                                  ? 1
                : config_.gradient_scale == GradientScale::l1 ? 0
                                                              : numel_factor(w.numel(), l.hi);
  item.smallest = config_.clamp_scale ? double(kSmallestScale) : 0;
  item.published = config_.published_scale;
  item.lo = l.lo, item.hi = l.hi;
  return item;
}

Variable LsqQuantizer::fake_quant(const Variable& x) {
  clamp_bits();
  if (!initialised()) {
    initialise(x.data());
  }
  const Variable offset = beta_ ? *beta_ : Variable{}, bits = config_.learn_bits ? nbits_ : Variable{};
  LsqSettings s = settings();
  if (config_.clamp_scale) s.smallest = double(kSmallestScale);
  if (made_ && (!made_->input || made_->input == x.data().view().data)) s.prepared = made_;
  if (config_.published_scale || needs_grad({alpha_}))
    s.grad_scale = s.prepared && s.prepared->factor.defined() ? s.prepared->factor : grad_scale(x);
  return fake_quant_lsq(x, alpha_, offset, bits, s);
}

ScaleFit LsqQuantizer::initial(const Tensor& v, int bits) const {
  const Levels l = Levels::of(bits, spec().is_signed);
  const auto mean = [&] { return double(sum_abs(v)) / double(v.numel()); };
  switch (config_.init) {
    case ScaleInit::vvtq: {
      // Published: one value from the module's own bit-width; head-wise widths differ, so each has its own.
      const double width = spec().groups > 1 ? bits : double(known_bits_.of(nbits_.data())[0]);
      return {float(2 * mean() / std::sqrt(std::exp2(width - 1) - 1)), 0, 0};
    }
    case ScaleInit::lsq:
      return {float(2 * mean() / std::sqrt(double(l.hi))), 0, 0};
    case ScaleInit::lsq_plus: {
      const Moments m = moments(v);
      const double far = std::max(std::fabs(m.mean - 3 * m.deviation), std::fabs(m.mean + 3 * m.deviation));
      return {float(far / std::exp2(bits - 1)), 0, 0};
    }
    case ScaleInit::mse:
      return config_.offset ? fit_scale_and_offset(v, l, label()) : fit_scale(v, l, label());
    case ScaleInit::minmax:
      return range_fit(v, l, config_.offset);
  }
  return {};
}

void LsqQuantizer::initialise(const Tensor& v) {
  LOWBIT_CHECK(v.numel() > 0, value, label(), "cannot be initialised by an empty tensor (got ", v.str(), ")");
  // Weights get a scale for every bit-width, activations that will not change theirs only the one in use.
  const bool all = spec().is_weight || config_.learn_bits || spec().groups > 1;
  std::vector<float> alpha, beta;
  ScaleFit fit;
  for (int n = kMinBits; n <= kMaxBits; ++n) {
    if (all || n == kMinBits) fit = initial(v, all ? n : bits());
    LOWBIT_CHECK(std::isfinite(fit.scale) && std::isfinite(fit.offset), numeric, label(),
                 "the first batch must give a finite scale (got ", fit.scale, ")");
    alpha.push_back(fit.scale > 0 ? fit.scale : kSmallestScale);  // all-zero values fit any scale
    beta.push_back(fit.offset);
  }
  alpha_.mutable_data().copy_from(Tensor::from(std::span<const float>(alpha), {kSlots}));
  if (beta_) beta_->mutable_data().copy_from(Tensor::from(std::span<const float>(beta), {kSlots}));
  init_state_.fill(1);
  note("initialised from " + v.str());
}

Tensor LsqQuantizer::scale() const {
  if (spec().groups == 1) {  // without the host reading it
    const int64_t slot = bits() - kMinBits;
    return alpha_.data().slice(0, slot, slot + 1).clone();
  }
  const std::vector<float> alpha = alpha_.data().to_vector<float>();
  std::vector<float> s;
  for (int n : group_bits()) s.push_back(alpha[size_t(n - kMinBits)]);
  return Tensor::from(std::span<const float>(s), {int64_t(s.size())});
}

void LsqQuantizer::set_scale(const Tensor& s) {
  const std::vector<int> bits = group_bits();
  const std::vector<float> values = s.cast(DType::f32).to_vector<float>();
  LOWBIT_CHECK(values.size() == bits.size(), shape, label(), "scale must hold one value per group (got ",
               s.str(), " for ", bits.size(), " groups)");
  std::vector<float> alpha = alpha_.data().to_vector<float>();
  for (size_t g = 0; g < bits.size(); ++g) alpha[size_t(bits[g] - kMinBits)] = values[g];
  alpha_.mutable_data().copy_from(Tensor::from(std::span<const float>(alpha), {kSlots}));
  init_state_.fill(1);
}

double LsqQuantizer::clipped_share(const Tensor& x) const {
  return lowbit::clipped_share(x, alpha_.data(), beta_ ? beta_->data() : Tensor{}, settings());
}

}  // namespace lowbit
