#include "quant/scheme/scheme.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <regex>

#include "quant/scheme/builtin.h"
#include "quant/scheme/factory.h"

namespace lowbit {
namespace {

std::string trim(const std::string& s) {
  const size_t b = s.find_first_not_of(" \t\r"), e = s.find_last_not_of(" \t\r");
  return b == std::string::npos ? "" : s.substr(b, e - b + 1);
}

const char* yes_no(bool b) { return b ? "yes" : "no"; }

/// What each slot that a quantizer may depend on carries: activations by slot_info(), weights by parameter.
std::map<std::string, SlotInfo> slot_info(Module& model) {
  std::map<std::string, SlotInfo> all;
  if (const auto* m = dynamic_cast<const DescribesSlots*>(&model)) all = m->slot_info();
  for (const NamedParameter& p : model.parameters()) all[p.name] = {p.parameter->var.shape()};
  return all;
}

std::string substitute(std::string value, const SchemeOptions& o, const std::string& where) {
  const RuleSettings known = {{"wbits", std::to_string(o.wbits)},
                              {"abits", std::to_string(o.abits)},
                              {"edge_bits", std::to_string(o.edge_bits)},
                              {"attn_in", o.qk_reparam ? "quant_x_4_qkv" : "qkv"},
                              {"offset", yes_no(o.offset)},
                              {"learn_bits", yes_no(o.learn_bits)},
                              {"learn_scale", yes_no(o.learn_scale)}};
  for (size_t at; (at = value.find("${")) != std::string::npos;) {
    const size_t end = value.find('}', at);
    const std::string name = value.substr(at + 2, end == std::string::npos ? end : end - at - 2);
    LOWBIT_CHECK(end != std::string::npos && known.count(name), usage, where, "unknown variable ${", name,
                 "}");
    value.replace(at, end - at + 1, known.at(name));
  }
  return value;
}

std::string default_state(const std::string& slot) {
  const size_t dot = slot.rfind('.');
  return (dot == std::string::npos ? slot : slot.substr(dot + 1)) + "_quant";
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
    LOWBIT_CHECK(is_rule_key(key), usage, where, "unknown key ", key);
    scheme.rules.back().settings[key] = substitute(trim(line.substr(eq + 1)), o, where);
  }
  const SchemeOptions defaults;
  for (Rule& r : scheme.rules) {
    const auto kind = r.settings.find("quantizer");
    if (kind == r.settings.end() || (kind->second != "lsq" && kind->second != "ofq")) continue;
    if (kind->second == "lsq" && o.learn_bits != defaults.learn_bits)
      r.settings.emplace("learn_bits", yes_no(o.learn_bits));
    if (o.published_scale) r.settings.emplace("published_scale", "yes");
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

std::vector<std::string> scheme_names() { return {"lsq", "lsq+", "minmax", "ofq", "vvtq"}; }

Scheme load_scheme(const std::string& name, const SchemeOptions& o) {
  for (const int bits : {o.wbits, o.abits, o.edge_bits})
    LOWBIT_CHECK(bits == -1 || bits == kFloatBits || (bits >= 1 && bits <= 8), usage, "scheme",
                 "bits must lie in [1, 8], or be 32 for float (got ", bits, ")");
  if (const char* text = builtin_scheme(name)) return parse_scheme(text, name, o);
  std::ifstream f(name);
  LOWBIT_CHECK(f.good(), usage, "scheme", "no scheme is called ", name,
               " and no such file can be read; known: lsq, lsq+, minmax, ofq, vvtq");
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
  const std::map<std::string, SlotInfo> infos = slot_info(model);
  for (const NamedSlot& s : model.slots()) {
    RuleSettings settings;
    for (size_t i = 0; i < patterns.size(); ++i) {
      if (!std::regex_match(s.name, patterns[i])) continue;
      const RuleSettings& own = scheme.rules[i].settings;
      const auto inherit = own.find("inherit");
      if (inherit == own.end() || inherit->second != "yes") settings.clear();
      for (const auto& [key, value] : own) settings[key] = value;
      used[i] = true;
    }
    const auto info = infos.find(s.name);
    const auto q = make_quantizer(s.name, settings, info == infos.end() ? SlotInfo{} : info->second);
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
