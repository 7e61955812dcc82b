#include "quant/scheme/factory.h"

#include <set>

#include "quant/quantizer/binary_quantizer.h"
#include "quant/quantizer/lsq_quantizer.h"
#include "quant/quantizer/minmax_quantizer.h"
#include "quant/quantizer/ofq_quantizer.h"

namespace lowbit {
namespace {

const std::set<std::string> kKeys = {
    "quantizer",      "bits",       "signed",      "state", "inherit",         "offset",
    "symmetric",      "learn_bits", "learn_scale", "clamp", "published_scale", "granularity",
    "gradient_scale", "init",       "mask",        "ties",  "heads",           "axis",
    "one_bit",        "name",       "before",      "after", "shift_per_head"};

const char* yes_no(bool b) { return b ? "yes" : "no"; }

/// The settings of one slot, read with checks; every failure names the slot.
class Reader {
 public:
  Reader(std::string slot, const RuleSettings& s) : slot_(std::move(slot)), s_(s) {}
  std::string text(const std::string& key, const std::string& fallback) const {
    const auto at = s_.find(key);
    return at == s_.end() ? fallback : at->second;
  }
  bool flag(const std::string& key, bool fallback) const {
    const std::string v = text(key, yes_no(fallback));
    LOWBIT_CHECK(v == "yes" || v == "no", usage, "scheme", slot_, ": ", key, " must be yes or no (got ", v,
                 ")");
    return v == "yes";
  }
  int number(const std::string& key, int fallback) const {
    const std::string v = text(key, std::to_string(fallback));
    size_t used = 0;
    int n = 0;
    try {
      n = std::stoi(v, &used);
    } catch (const std::exception&) {
      used = std::string::npos;
    }
    LOWBIT_CHECK(used == v.size(), usage, "scheme", slot_, ": ", key, " must be a whole number (got ", v,
                 ")");
    return n;
  }
  template <class E>
  E choice(const std::string& key, E fallback, std::initializer_list<std::pair<const char*, E>> all) const {
    const auto at = s_.find(key);
    if (at == s_.end()) return fallback;
    std::string list;
    for (const auto& [name, value] : all) {
      if (at->second == name) return value;
      list += std::string(list.empty() ? "" : ", ") + name;
    }
    fail(ErrorKind::usage, "scheme",
         slot_ + ": " + key + " must be one of " + list + " (got " + at->second + ")");
  }
  /// 32 and -1 are float.
  int bits(int least) const {
    const int n = number("bits", 8);
    if (n == -1 || n == kFloatBits) return kFloatBits;
    LOWBIT_CHECK(n >= least && n <= 8, usage, "scheme", slot_, ": bits must lie in [", least,
                 ", 8], or be 32 for float (got ", n, ")");
    return n;
  }

 private:
  std::string slot_;
  const RuleSettings& s_;
};

bool is_weight_slot(const std::string& slot) { return slot == "weight" || slot.ends_with(".weight"); }

std::shared_ptr<Quantizer> make_lsq(const Reader& r, QuantSpec spec) {
  LsqConfig c;
  c.offset = r.flag("offset", false);
  spec.symmetric = !c.offset;
  c.spec = spec;
  c.gradient_scale = r.choice("gradient_scale", GradientScale::numel,
                              {{"l1", GradientScale::l1},
                               {"numel", GradientScale::numel},
                               {"numel_over_qp", GradientScale::numel_over_qp}});
  c.init = r.choice("init", ScaleInit::lsq,
                    {{"vvtq", ScaleInit::vvtq},
                     {"lsq", ScaleInit::lsq},
                     {"lsq+", ScaleInit::lsq_plus},
                     {"mse", ScaleInit::mse},
                     {"minmax", ScaleInit::minmax}});
  c.clamp_scale = r.flag("clamp", true);
  c.published_scale = r.flag("published_scale", false);
  c.mask = r.choice(
      "mask", MaskRule::clip_then_round,
      {{"clip_then_round", MaskRule::clip_then_round}, {"round_then_clip", MaskRule::round_then_clip}});
  c.ties = r.choice(
      "ties", TiePolicy::half,
      {{"half", TiePolicy::half}, {"inclusive", TiePolicy::inclusive}, {"exclusive", TiePolicy::exclusive}});
  if (const int heads = r.number("heads", 0); heads > 0) c = headwise(c, r.number("axis", -1), heads);
  c.learn_bits = r.flag("learn_bits", c.learn_bits);
  auto q = std::make_shared<LsqQuantizer>(c);
  q->set_quant_state(r.flag("learn_scale", true) ? QuantState::learned : QuantState::fixed, "installed");
  return q;
}

std::shared_ptr<Quantizer> make_ofq(const Reader& r, QuantSpec spec, const std::string& slot,
                                    const SlotInfo& info) {
  enum class Place { tensor, token, channel, plane };
  const Place place = r.choice("granularity", Place::tensor,
                               {{"tensor", Place::tensor},
                                {"token", Place::token},
                                {"channel", Place::channel},
                                {"plane", Place::plane}});
  OfqConfig c;
  c.name = r.text("name", ""), c.before = r.text("before", ""), c.after = r.text("after", "");
  const Shape& x = info.shape;
  LOWBIT_CHECK(x.ndim() >= (place == Place::plane   ? 3
                            : place == Place::token ? 2
                                                    : 1),
               usage, "scheme", slot,
               ": the model does not say what passes here, so the number of scales is not known");
  LOWBIT_CHECK(
      place != Place::token || info.same_tokens, usage, "scheme", slot,
      " is used with groups of different length, so that a scale per token has no place there; other "
      "quantizers have one per tensor");
  c.published_scale = r.flag("published_scale", false);
  c.image = place == Place::plane;
  c.shift = c.image ? Shape{x[-2], x[-1]} : Shape{x[-1]};
  const bool per_head = r.flag("shift_per_head", false);
  if (per_head) c.shift = Shape{info.heads, x[-1]};
  if (place != Place::tensor) {
    const int channel = spec.is_weight ? -x.ndim() : -1;
    spec.granularity = place == Place::token ? Granularity::token : Granularity::channel;
    spec.axis = place == Place::token ? -2 : place == Place::plane ? -3 : channel;
    spec.groups = x[spec.axis] * (per_head ? info.heads : 1);
  }
  c.spec = spec;
  auto q = std::make_shared<OfqQuantizer>(c);
  q->set_quant_state(r.flag("learn_scale", true) ? QuantState::learned : QuantState::fixed, "installed");
  return q;
}

std::shared_ptr<Quantizer> make_statsq(QuantSpec spec, const std::string& slot, const SlotInfo& info) {
  LOWBIT_CHECK(spec.is_weight && info.shape.ndim() >= 2, usage, "scheme", slot, ": statsq is for weights");
  spec.granularity = Granularity::channel;
  spec.axis = -2, spec.groups = info.shape[-2];
  auto q = std::make_shared<StatsqQuantizer>(spec);
  q->set_quant_state(QuantState::fixed, "installed");
  return q;
}

std::shared_ptr<Quantizer> make_binary(const Reader& r, QuantSpec spec, const SlotInfo& info) {
  spec.granularity = r.choice(
      "one_bit", Granularity::tensor,
      {{"tensor", Granularity::tensor}, {"sample", Granularity::sample}, {"column", Granularity::column}});
  auto q = std::make_shared<BinaryQuantizer>(spec, info.heads);
  q->set_quant_state(QuantState::fixed, "installed");
  return q;
}

std::shared_ptr<Quantizer> make_minmax(const Reader& r, QuantSpec spec, const std::string& slot,
                                       const SlotInfo& info) {
  spec.symmetric = r.flag("symmetric", true);
  spec.granularity = r.choice("granularity", Granularity::tensor,
                              {{"tensor", Granularity::tensor}, {"channel", Granularity::channel}});
  if (spec.granularity == Granularity::channel) {
    LOWBIT_CHECK(spec.is_weight, usage, "scheme", slot, ": granularity = channel is for weights");
    spec.axis = -info.shape.ndim(), spec.groups = info.shape[0];
  }
  auto q = std::make_shared<MinMaxQuantizer>(spec);
  q->set_quant_state(QuantState::observe, "installed");
  return q;
}

}  // namespace

bool is_rule_key(const std::string& key) { return kKeys.count(key) != 0; }

std::shared_ptr<Quantizer> make_quantizer(const std::string& slot, const RuleSettings& s,
                                          const SlotInfo& info) {
  const Reader r(slot, s);
  enum class Kind { lsq, minmax, ofq, statsq, none };
  const Kind kind = r.choice("quantizer", Kind::none,
                             {{"lsq", Kind::lsq},
                              {"minmax", Kind::minmax},
                              {"ofq", Kind::ofq},
                              {"statsq", Kind::statsq},
                              {"none", Kind::none}});
  const bool one_bit = kind == Kind::ofq || kind == Kind::statsq || s.count("one_bit");
  const int bits = r.bits(one_bit ? 1 : 2);
  if (kind == Kind::none || bits == kFloatBits) return nullptr;
  const QuantSpec spec{.bits = bits,
                       .is_signed = r.flag("signed", kind != Kind::minmax || is_weight_slot(slot)),
                       .is_weight = is_weight_slot(slot)};
  std::shared_ptr<Quantizer> q = kind == Kind::ofq      ? make_ofq(r, spec, slot, info)
                                 : kind == Kind::statsq ? make_statsq(spec, slot, info)
                                 : bits == 1            ? make_binary(r, spec, info)
                                 : kind == Kind::lsq    ? make_lsq(r, spec)
                                                        : make_minmax(r, spec, slot, info);
  q->set_label(slot);
  return q;
}

}  // namespace lowbit
