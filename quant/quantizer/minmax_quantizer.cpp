#include "quant/quantizer/minmax_quantizer.h"

#include <algorithm>
#include <cmath>

#include "autograd/core/variable.h"

namespace lowbit {

MinMaxQuantizer::MinMaxQuantizer(const QuantSpec& s)
    : Quantizer(s),
      scale_(buffer("scale", Tensor::zeros({s.groups}))),
      zero_point_(buffer("zero_point", Tensor::zeros({s.groups}))) {
  LOWBIT_CHECK(s.bits >= 2 && s.bits <= 8, usage, "quantizer", "bits must lie in [2, 8] (got ", s.bits, ")");
}

void MinMaxQuantizer::observe(const Tensor& x) {
  const Extrema e = extrema(x, spec().axis, spec().groups);
  if (range_.lo.empty()) range_ = e;
  for (size_t g = 0; g < e.lo.size(); ++g) {
    range_.lo[g] = std::min(range_.lo[g], e.lo[g]);
    range_.hi[g] = std::max(range_.hi[g], e.hi[g]);
  }
}

void MinMaxQuantizer::on_state(QuantState from, QuantState to) {
  LOWBIT_CHECK(to != QuantState::learned, usage, label(), "a min-max quantizer has no trained scale");
  if (to == QuantState::observe) range_ = {};
  if (from == QuantState::observe && to == QuantState::fixed && !range_.lo.empty()) calibrate();
}

void MinMaxQuantizer::calibrate() {
  std::vector<float> scale, zero;
  const Levels l = spec().levels();
  const float steps = float((1 << spec().bits) - 1);
  for (size_t g = 0; g < range_.lo.size(); ++g) {
    const float lo = std::min(range_.lo[g], 0.f), hi = std::max(range_.hi[g], 0.f);
    LOWBIT_CHECK(std::isfinite(lo) && std::isfinite(hi), numeric, label(),
                 "the observed range must be finite (got ", lo, " … ", hi, " for group ", g, ")");
    float a = spec().symmetric ? std::max(l.lo < 0 ? -lo : 0.f, hi) / float(l.hi) : (hi - lo) / steps;
    if (a == 0) a = 1;  // only zeros: any scale is exact
    scale.push_back(a);
    zero.push_back(spec().symmetric ? 0.f : std::min(std::nearbyint(-lo / a), steps));
  }
  scale_.copy_from(Tensor::from(std::span<const float>(scale), scale_.shape()));
  zero_point_.copy_from(Tensor::from(std::span<const float>(zero), zero_point_.shape()));
  note(str_cat("calibrated, ", scale.size(), scale.size() == 1 ? " scale" : " scales"));
}

bool MinMaxQuantizer::initialised() const { return known_scale_.of(scale_)[0] != 0; }

void MinMaxQuantizer::set_scale(const Tensor& s) { scale_.copy_from(s); }

LsqSettings MinMaxQuantizer::settings() const {
  LsqSettings s;
  s.name = label();
  s.axis = spec().axis, s.groups = spec().groups;
  s.ties = TiePolicy::inclusive;
  s.codes = spec().is_weight && spec().symmetric ? CodeType::i8 : CodeType::u8;
  s.levels = {spec().levels()};
  if (spec().symmetric) return s;
  s.levels.clear();
  for (float z : known_zero_.of(zero_point_)) s.levels.push_back({-int(z), (1 << spec().bits) - 1 - int(z)});
  return s;
}

Variable MinMaxQuantizer::fake_quant(const Variable& x) {
  if (!initialised()) {
    observe(x.data());
    calibrate();
  }
  return fake_quant_lsq(x, Variable(scale_), {}, {}, settings());
}

double MinMaxQuantizer::clipped_share(const Tensor& x) const {
  return lowbit::clipped_share(x, scale_, {}, settings());
}

}  // namespace lowbit
