#include "data/image/rand_augment.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <numbers>

#include "tensor/core/error.h"

namespace lowbit {

namespace {

constexpr double kMaxLevel = 10;

/// How a level becomes an argument.
enum class Level : uint8_t {
  none,
  rotate,
  shear,
  translate_rel,
  translate_abs,
  posterize,
  posterize_increasing,
  posterize_original,
  solarize,
  solarize_increasing,
  solarize_add,
  enhance,
  enhance_increasing,
};

struct Op {
  const char* name;
  Level level;
  void (*run)(Image& image, double argument, Filter filter, Rgb fill, Image& scratch);
};

template <void (*F)(Image&)>
void plain(Image& i, double, Filter, Rgb, Image&) {
  F(i);
}
template <void (*F)(Image&, int)>
void whole(Image& i, double a, Filter, Rgb, Image&) {
  F(i, int(a));
}
template <Enhancement E>
void enhanced(Image& i, double a, Filter, Rgb, Image& s) {
  enhance(i, E, a, s);
}
void turned(Image& i, double a, Filter f, Rgb c, Image& s) { rotate(i, a, f, c, s); }
void shear_x(Image& i, double a, Filter f, Rgb c, Image& s) { affine(i, {1, a, 0, 0, 1, 0}, f, c, s); }
void shear_y(Image& i, double a, Filter f, Rgb c, Image& s) { affine(i, {1, 0, 0, a, 1, 0}, f, c, s); }
void shift_x(Image& i, double a, Filter f, Rgb c, Image& s) { affine(i, {1, 0, a, 0, 1, 0}, f, c, s); }
void shift_y(Image& i, double a, Filter f, Rgb c, Image& s) { affine(i, {1, 0, 0, 0, 1, a}, f, c, s); }
void shift_x_rel(Image& i, double a, Filter f, Rgb c, Image& s) { shift_x(i, a * i.width(), f, c, s); }
void shift_y_rel(Image& i, double a, Filter f, Rgb c, Image& s) { shift_y(i, a * i.height(), f, c, s); }

constexpr Op kOps[] = {
    {"AutoContrast", Level::none, plain<auto_contrast>},
    {"Equalize", Level::none, plain<equalize>},
    {"Invert", Level::none, plain<invert>},
    {"Rotate", Level::rotate, turned},
    {"Posterize", Level::posterize, whole<posterize>},
    {"PosterizeIncreasing", Level::posterize_increasing, whole<posterize>},
    {"PosterizeOriginal", Level::posterize_original, whole<posterize>},
    {"Solarize", Level::solarize, whole<solarize>},
    {"SolarizeIncreasing", Level::solarize_increasing, whole<solarize>},
    {"SolarizeAdd", Level::solarize_add, whole<solarize_add>},
    {"Color", Level::enhance, enhanced<Enhancement::color>},
    {"ColorIncreasing", Level::enhance_increasing, enhanced<Enhancement::color>},
    {"Contrast", Level::enhance, enhanced<Enhancement::contrast>},
    {"ContrastIncreasing", Level::enhance_increasing, enhanced<Enhancement::contrast>},
    {"Brightness", Level::enhance, enhanced<Enhancement::brightness>},
    {"BrightnessIncreasing", Level::enhance_increasing, enhanced<Enhancement::brightness>},
    {"Sharpness", Level::enhance, enhanced<Enhancement::sharpness>},
    {"SharpnessIncreasing", Level::enhance_increasing, enhanced<Enhancement::sharpness>},
    {"ShearX", Level::shear, shear_x},
    {"ShearY", Level::shear, shear_y},
    {"TranslateX", Level::translate_abs, shift_x},
    {"TranslateY", Level::translate_abs, shift_y},
    {"TranslateXRel", Level::translate_rel, shift_x_rel},
    {"TranslateYRel", Level::translate_rel, shift_y_rel},
};

const Op& op_named(std::string_view name) {
  for (const Op& op : kOps)
    if (name == op.name) return op;
  throw Error(ErrorKind::value, "rand_augment", str_cat("no operation ", name));
}

/// The fifteen operations of a policy, in timm's order, with its weights for `w0`.
struct PolicyOp {
  const char* name;
  bool increasing;  ///< has a form whose strength grows with the level
  double weight;
};
constexpr PolicyOp kPolicyOps[] = {
    {"AutoContrast", false, 0.025}, {"Equalize", false, 0.005},    {"Invert", false, 0},
    {"Rotate", false, 0.3},         {"Posterize", true, 0},        {"Solarize", true, 0.005},
    {"SolarizeAdd", false, 0.005},  {"Color", true, 0.025},        {"Contrast", true, 0.005},
    {"Brightness", true, 0.005},    {"Sharpness", true, 0.025},    {"ShearX", false, 0.2},
    {"ShearY", false, 0.2},         {"TranslateXRel", false, 0.1}, {"TranslateYRel", false, 0.1},
};

[[noreturn]] void refuse(const std::string& text, const std::string& why) {
  throw Error(ErrorKind::usage, "rand_augment",
              str_cat(why, " (got ", text, "); a policy looks like rand-m9-mstd0.5-inc1"));
}

/// "mstd0.5": the letters and the number.
std::pair<std::string, double> field_of(const std::string& text, const std::string& field) {
  const size_t digits = field.find_first_of("0123456789.");
  if (digits == std::string::npos || digits == 0) refuse(text, str_cat("field ", field, " has no number"));
  char* end = nullptr;
  const double value = std::strtod(field.c_str() + digits, &end);
  if (*end != '\0' || !std::isfinite(value)) refuse(text, str_cat("field ", field, " is not a number"));
  return {field.substr(0, digits), value};
}

void set_field(RandAugmentPolicy& p, const std::string& text, const std::string& name, double v,
               bool& increasing, bool& weighted) {
  if (name == "m") {
    p.magnitude = v;
  } else if (name == "mstd") {
    p.magnitude_std = v > 100 ? std::numeric_limits<double>::infinity() : v;
  } else if (name == "mmax") {
    p.magnitude_max = v;
  } else if (name == "n" && v >= 1 && v <= 100 && v == std::floor(v)) {
    p.layers = int(v);
  } else if (name == "p" && v <= 1) {
    p.probability = v;
  } else if (name == "inc") {
    increasing = true;  // timm reads the text as a truth value: inc0 increases too
  } else if (name == "w" && v == 0) {
    weighted = true;
  } else {
    refuse(text, str_cat("field ", name, " is unknown or out of range"));
  }
}

/// Index of an operation; with weights one that was not taken before.
size_t draw_op(const RandAugmentPolicy& p, std::vector<double>& left, Draws& draws) {
  if (left.empty()) return size_t(draws.integer(0, int64_t(p.ops.size()) - 1));
  double total = 0;
  for (const double w : left) total += w;
  double u = draws.uniform(0, total);
  size_t chosen = 0;
  for (size_t i = 0; i < left.size(); ++i) {
    if (left[i] <= 0) continue;
    chosen = i;
    if (u < left[i]) break;
    u -= left[i];
  }
  left[chosen] = 0;
  return chosen;
}

double draw_level(const RandAugmentPolicy& p, double u, double v) {
  double level = p.magnitude;
  if (std::isinf(p.magnitude_std))
    level = p.magnitude * u;
  else if (p.magnitude_std > 0)  // Box-Muller
    level += p.magnitude_std * std::sqrt(-2 * std::log(1 - u)) * std::cos(2 * std::numbers::pi * v);
  return std::clamp(level, 0.0, p.magnitude_max);
}

}  // namespace

RandAugmentPolicy RandAugmentPolicy::parse(const std::string& text) {
  RandAugmentPolicy p;
  bool increasing = false, weighted = false;
  size_t begin = text.find('-');
  if (text.substr(0, begin) != "rand") refuse(text, "policy must begin with rand");
  while (begin != std::string::npos) {
    const size_t end = text.find('-', begin + 1);
    const auto [name, value] = field_of(text, text.substr(begin + 1, end - begin - 1));
    set_field(p, text, name, value, increasing, weighted);
    begin = end;
  }
  for (const PolicyOp& op : kPolicyOps) {
    p.ops.push_back(str_cat(op.name, increasing && op.increasing ? "Increasing" : ""));
    if (weighted) p.weights.push_back(op.weight);
  }
  if (weighted && p.layers > 13) refuse(text, "w0 draws without repetition, at most 13 operations");
  return p;
}

double augment_argument(std::string_view name, double level, bool negate, int side) {
  const double l = level / kMaxLevel, sign = negate ? -1 : 1;
  switch (op_named(name).level) {
    case Level::none:
      return 0;
    case Level::rotate:
      return sign * (l * 30);
    case Level::shear:
      return sign * (l * 0.3);
    case Level::translate_rel:
      return sign * (l * 0.45);
    case Level::translate_abs:
      return sign * (l * int(side * 0.45));
    case Level::posterize:
      return int(l * 4);
    case Level::posterize_increasing:
      return 4 - int(l * 4);
    case Level::posterize_original:
      return int(l * 4) + 4;
    case Level::solarize:
      return int(l * 256);
    case Level::solarize_increasing:
      return 256 - int(l * 256);
    case Level::solarize_add:
      return int(l * 110);
    case Level::enhance:
      return l * 1.8 + 0.1;
    case Level::enhance_increasing:
      return std::max(0.1, 1.0 + sign * (l * 0.9));
  }
  return 0;
}

void apply_augment(std::string_view name, double argument, Filter filter, Rgb fill, Image& image,
                   Image& scratch) {
  op_named(name).run(image, argument, filter, fill, scratch);
}

void rand_augment(const RandAugmentPolicy& p, Rgb fill, Draws& draws, Image& image, Image& scratch) {
  std::vector<double> left = p.weights;
  for (int layer = 0; layer < p.layers; ++layer) {
    const std::string& op = p.ops[draw_op(p, left, draws)];
    const bool apply = draws.chance(p.probability);
    const double u = draws.uniform(0, 1), v = draws.uniform(0, 1);
    const bool negate = draws.chance(0.5);
    const Filter filter = draws.chance(0.5) ? Filter::bilinear : Filter::bicubic;
    if (apply)
      apply_augment(op, augment_argument(op, draw_level(p, u, v), negate, image.width()), filter, fill, image,
                    scratch);
  }
}

void color_jitter(double strength, Draws& draws, Image& image, Image& scratch) {
  Enhancement order[] = {Enhancement::brightness, Enhancement::contrast, Enhancement::color};
  for (int64_t i = 2; i > 0; --i) std::swap(order[i], order[draws.integer(0, i)]);
  for (const Enhancement e : order)
    enhance(image, e, draws.uniform(std::max(0.0, 1 - strength), 1 + strength), scratch);
}

}  // namespace lowbit
