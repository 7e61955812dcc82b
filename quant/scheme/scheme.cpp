#include "quant/scheme/scheme.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <regex>
#include <set>

#include "quant/quantizer/lsq_quantizer.h"
#include "quant/quantizer/minmax_quantizer.h"
#include "quant/scheme/builtin.h"

namespace lowbit {
namespace {

using Settings = std::map<std::string, std::string>;

constexpr int kFloatBits = 32;

const std::set<std::string> kKeys = {
    "quantizer",      "bits",       "signed",      "state", "inherit",         "offset",
    "symmetric",      "learn_bits", "learn_scale", "clamp", "published_scale", "granularity",
    "gradient_scale", "init",       "mask",        "ties",  "heads",           "axis"};

std::string trim(const std::string& s) {
  const size_t b = s.find_first_not_of(" \t\r"), e = s.find_last_not_of(" \t\r");
  return b == std::string::npos ? "" : s.substr(b, e - b + 1);
}

const char* yes_no(bool b) { return b ? "yes" : "no"; }

std::string substitute(std::string value, const SchemeOptions& o, const std::string& where) {
  const Settings known = {{"wbits", std::to_string(o.wbits)},         {"abits", std::to_string(o.abits)},
                          {"edge_bits", std::to_string(o.edge_bits)}, {"offset", yes_no(o.offset)},
                          {"learn_bits", yes_no(o.learn_bits)},       {"learn_scale", yes_no(o.learn_scale)}};
  for (size_t at; (at = value.find("${")) != std::string::npos;) {
    const size_t end = value.find('}', at);
    const std::string name = value.substr(at + 2, end == std::string::npos ? end : end - at - 2);
    LOWBIT_CHECK(end != std::string::npos && known.count(name), usage, where, "unknown variable ${", name,
                 "}");
    value.replace(at, end - at + 1, known.at(name));
  }
  return value;
}

/// The settings of one slot, read with checks; every failure names the slot.
class Reader {
 public:
  Reader(std::string slot, const Settings& s) : slot_(std::move(slot)), s_(s) {}
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
  int bits() const {
    const int n = number("bits", 8);
    if (n == -1 || n == kFloatBits) return kFloatBits;
    LOWBIT_CHECK(n >= 2 && n <= 8, usage, "scheme", slot_,
                 ": bits must lie in [2, 8], or be 32 for float (got ", n, ")");
    return n;
  }

 private:
  std::string slot_;
  const Settings& s_;
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

std::shared_ptr<Quantizer> make_minmax(const Reader& r, QuantSpec spec, const std::string& slot,
                                       const Shape* weight) {
  spec.symmetric = r.flag("symmetric", true);
  spec.granularity = r.choice("granularity", Granularity::tensor,
                              {{"tensor", Granularity::tensor}, {"channel", Granularity::channel}});
  if (spec.granularity == Granularity::channel) {
    LOWBIT_CHECK(weight, usage, "scheme", slot, ": granularity = channel is for weights");
    spec.axis = -weight->ndim(), spec.groups = (*weight)[0];
  }
  auto q = std::make_shared<MinMaxQuantizer>(spec);
  q->set_quant_state(QuantState::observe, "installed");
  return q;
}

/// Null: the slot stays float.
std::shared_ptr<Quantizer> make_quantizer(const std::string& slot, const Settings& s, const Shape* weight) {
  const Reader r(slot, s);
  enum class Kind { lsq, minmax, none };
  const Kind kind =
      r.choice("quantizer", Kind::none, {{"lsq", Kind::lsq}, {"minmax", Kind::minmax}, {"none", Kind::none}});
  const int bits = r.bits();
  if (kind == Kind::none || bits == kFloatBits) return nullptr;
  const QuantSpec spec{.bits = bits,
                       .is_signed = r.flag("signed", kind == Kind::lsq || is_weight_slot(slot)),
                       .is_weight = is_weight_slot(slot)};
  std::shared_ptr<Quantizer> q = kind == Kind::lsq ? make_lsq(r, spec) : make_minmax(r, spec, slot, weight);
  q->set_label(slot);
  return q;
}

std::string default_state(const std::string& slot) {
  const size_t dot = slot.rfind('.');
  return (dot == std::string::npos ? slot : slot.substr(dot + 1)) + "_quant";
}

std::map<std::string, Shape> parameter_shapes(Module& model) {
  std::map<std::string, Shape> shapes;
  for (const NamedParameter& p : model.parameters()) shapes[p.name] = p.parameter->var.shape();
  return shapes;
}

}  // namespace

Scheme parse_scheme(const std::string& text, const std::string& name, const SchemeOptions& o) {
  Scheme scheme{name, {}};
  std::istringstream in(text);
  std::string line;
  for (int number = 1; std::getline(in, line); ++number) {
    const std::string where = "scheme " + name + ", line " + std::to_string(number);
    line = trim(line);
    if (line.empty() || line[0] == '#') continue;
    if (line[0] == '[' && line.back() == ']') {
      const std::string pattern = line.substr(1, line.size() - 2);
      try {
        (void)std::regex(pattern);
      } catch (const std::regex_error& e) {
        fail(ErrorKind::usage, where, "not a regular expression: " + pattern);
      }
      scheme.rules.push_back({pattern, {}});
      continue;
    }
    const size_t eq = line.find('=');
    LOWBIT_CHECK(eq != std::string::npos, usage, where, "expected [slot] or key = value (got ", line, ")");
    LOWBIT_CHECK(!scheme.rules.empty(), usage, where, "a key must follow a [slot] line (got ", line, ")");
    const std::string key = trim(line.substr(0, eq));
    LOWBIT_CHECK(kKeys.count(key), usage, where, "unknown key ", key);
    scheme.rules.back().settings[key] = substitute(trim(line.substr(eq + 1)), o, where);
  }
  const SchemeOptions defaults;
  for (Rule& r : scheme.rules) {
    const auto kind = r.settings.find("quantizer");
    if (kind == r.settings.end() || kind->second != "lsq") continue;
    if (o.learn_bits != defaults.learn_bits) r.settings.emplace("learn_bits", yes_no(o.learn_bits));
    if (o.learn_scale != defaults.learn_scale) r.settings.emplace("learn_scale", yes_no(o.learn_scale));
  }
  return scheme;
}

std::string Scheme::text() const {
  std::string s;
  for (const Rule& r : rules) {
    s += "[" + r.slot + "]\n";
    for (const auto& [key, value] : r.settings) s += key + " = " + value + "\n";
  }
  return s;
}

std::vector<std::string> scheme_names() { return {"lsq", "lsq+", "minmax", "vvtq"}; }

Scheme load_scheme(const std::string& name, const SchemeOptions& o) {
  for (const int bits : {o.wbits, o.abits, o.edge_bits})
    LOWBIT_CHECK(bits == -1 || bits == kFloatBits || (bits >= 2 && bits <= 8), usage, "scheme",
                 "bits must lie in [2, 8], or be 32 for float (got ", bits, ")");
  if (const char* text = builtin_scheme(name)) return parse_scheme(text, name, o);
  std::ifstream f(name);
  LOWBIT_CHECK(f.good(), usage, "scheme", "no scheme is called ", name,
               " and no such file can be read; known: lsq, lsq+, minmax, vvtq");
  return parse_scheme({std::istreambuf_iterator<char>(f), {}}, name, o);
}

std::string Report::str() const {
  std::string s = str_cat(installed.size(), " slots quantized, ", left_float.size(), " float");
  if (!unused_rules.empty()) s += str_cat(", ", unused_rules.size(), " rules match nothing");
  return s;
}

Report install(Module& model, const Scheme& scheme) {
  Report report;
  std::vector<std::regex> patterns;
  for (const Rule& r : scheme.rules) patterns.emplace_back(r.slot);
  std::vector<bool> used(scheme.rules.size(), false);
  const std::map<std::string, Shape> shapes = parameter_shapes(model);
  for (const NamedSlot& s : model.slots()) {
    Settings settings;
    for (size_t i = 0; i < patterns.size(); ++i) {
      if (!std::regex_match(s.name, patterns[i])) continue;
      const Settings& own = scheme.rules[i].settings;
      const auto inherit = own.find("inherit");
      if (inherit == own.end() || inherit->second != "yes") settings.clear();
      for (const auto& [key, value] : own) settings[key] = value;
      used[i] = true;
    }
    const auto shape = shapes.find(s.name);
    const auto q = make_quantizer(s.name, settings, shape == shapes.end() ? nullptr : &shape->second);
    if (!q) {
      s.slot->clear();
      report.left_float.push_back(s.name);
      continue;
    }
    const auto state = settings.find("state");
    const std::string where = state == settings.end() ? default_state(s.name) : state->second;
    s.slot->set(std::dynamic_pointer_cast<Transform>(q), where == "." ? "" : where);
    report.installed.push_back(s.name);
  }
  for (size_t i = 0; i < used.size(); ++i)
    if (!used[i]) report.unused_rules.push_back(scheme.rules[i].slot);
  return report;
}

}  // namespace lowbit
