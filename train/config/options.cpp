#include "train/config/options.h"

#include <boost/program_options.hpp>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tensor/core/error.h"

namespace lowbit {
namespace {

namespace po = boost::program_options;

std::string trimmed(std::string_view s) {
  const size_t b = s.find_first_not_of(" \t\r\n");
  if (b == s.npos) return "";
  return std::string(s.substr(b, s.find_last_not_of(" \t\r\n") - b + 1));
}

std::vector<std::string> split(const std::string& s, char separator) {
  std::vector<std::string> parts;
  size_t begin = 0;
  for (;;) {
    const size_t end = s.find(separator, begin);
    parts.push_back(trimmed(s.substr(begin, end - begin)));
    if (end == s.npos) return parts;
    begin = end + 1;
  }
}

template <class T>
bool parse_number(const std::string& s, T& v) {
  const auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), v);
  return error == std::errc() && end == s.data() + s.size();
}

bool parse_seconds(const std::string& s, double& v) {
  std::string rest = s;
  int64_t days = 0;
  if (const size_t dash = s.find('-'); dash != s.npos) {
    if (!parse_number(s.substr(0, dash), days) || days < 0) return false;
    rest = s.substr(dash + 1);
  }
  const auto parts = split(rest, ':');
  if (parts.size() > 3) return false;
  v = 0;
  for (const auto& p : parts) {
    int64_t n = 0;
    if (!parse_number(p, n) || n < 0) return false;
    v = v * 60 + double(n);
  }
  v += double(days) * 86400;
  return true;
}

/// 1 on, 0 off, -1 neither.
int parse_flag(std::string s) {
  for (char& c : s) c = char(std::tolower(c));
  if (s == "on" || s == "true" || s == "yes" || s == "1") return 1;
  if (s == "off" || s == "false" || s == "no" || s == "0") return 0;
  return -1;
}

struct Complaint {
  std::string op, option;
  [[noreturn]] void operator()(const std::string& must, const std::string& got,
                               const std::string& hint = "") const {
    fail(ErrorKind::usage, op, str_cat("--", option, " must be ", must, " (got ", got, ")", hint));
  }
};

void check_range(const OptionSpec& o, double v, const std::string& text, const Complaint& complain) {
  if (v == o.also || (v >= o.lo && v <= o.hi)) return;
  const std::string hint = std::isnan(o.also) ? "" : str_cat("; ", int64_t(o.also), " means ", o.also_means);
  if (std::isinf(o.hi)) complain(str_cat("at least ", o.lo), text, hint);
  if (std::isinf(o.lo)) complain(str_cat("at most ", o.hi), text, hint);
  complain(str_cat("between ", o.lo, " and ", o.hi), text, hint);
}

void check_real(const OptionSpec& o, const std::string& text, const Complaint& complain) {
  double v = 0;
  if (!parse_number(text, v) || !std::isfinite(v)) complain("a number", "'" + text + "'");
  check_range(o, v, text, complain);
}

/// The value in its normal form; throws what is wrong with it.
std::string checked(const OptionSpec& o, const std::string& raw, const char* op) {
  const std::string text = trimmed(raw);
  const Complaint complain{op, o.name};
  switch (o.kind) {
    case OptionKind::flag: {
      const int on = parse_flag(text);
      if (on < 0) complain("on or off", "'" + text + "'");
      return on ? "on" : "off";
    }
    case OptionKind::integer: {
      int64_t v = 0;
      if (!parse_number(text, v)) complain("a whole number", "'" + text + "'");
      check_range(o, double(v), text, complain);
      return text;
    }
    case OptionKind::real:
      check_real(o, text, complain);
      return text;
    case OptionKind::reals:
      if (!text.empty())
        for (const auto& part : split(text, ',')) check_real(o, part, complain);
      return text;
    case OptionKind::seconds: {
      double v = 0;
      if (!text.empty() && !parse_seconds(text, v)) complain("seconds or H:M:S", "'" + text + "'");
      return text;
    }
    case OptionKind::text:
      break;
  }
  if (*o.choices) {
    bool known = false;
    for (const auto& c : split(o.choices, '|')) known = known || c == text;
    if (!known) complain(str_cat("one of ", o.choices), "'" + text + "'");
  }
  return text;
}

std::string environment_name(const char* option) {
  std::string s = "LOWBIT_";
  for (const char* p = option; *p; ++p) s += *p == '-' ? '_' : char(std::toupper(*p));
  return s;
}

/// A section of an INI file is a heading only: "quantization.wbits" is "wbits".
std::string without_section(const std::string& key) {
  const size_t dot = key.rfind('.');
  if (dot == key.npos) return key;
  for (int g = 0; g < kOptionGroups; ++g) {
    std::string title = group_title(OptionGroup(g));
    title[0] = char(std::tolower(title[0]));
    if (key.compare(0, dot, title) == 0) return key.substr(dot + 1);
  }
  return key;
}

std::string json_text(const nlohmann::json& v, const std::string& key, const char* op) {
  if (v.is_string()) return v.get<std::string>();
  if (v.is_boolean()) return v.get<bool>() ? "on" : "off";
  if (v.is_number()) return v.dump();
  if (v.is_object() && v.contains("value")) return json_text(v["value"], key, op);
  LOWBIT_CHECK(v.is_array(), usage, op, "config key '", key,
               "' must be a string, number, boolean or list (got ", v.dump(), ")");
  std::string s;
  for (const auto& e : v) s += (s.empty() ? "" : ",") + json_text(e, key, op);
  return s;
}

}  // namespace

const char* origin_name(OptionOrigin o) {
  constexpr const char* names[] = {
      "default",     "chosen for this machine", "weight file", "config file", "environment", "--set",
      "command line"};
  return names[size_t(o)];
}

Options::Options(const VerbSpec& verb) : verb_(&verb) {
  for (const OptionSpec& o : option_table())
    if (o.verbs & verb.mask) values_[o.name].text = o.fallback;
}

const Options::Value& Options::value(std::string_view name, OptionKind kind) const {
  const auto it = values_.find(name);
  LOWBIT_ASSERT(it != values_.end());
  LOWBIT_ASSERT(find_option(name, verb_->mask)->kind == kind);
  return it->second;
}

bool Options::flag(std::string_view name) const { return value(name, OptionKind::flag).text == "on"; }
int64_t Options::integer(std::string_view name) const {
  int64_t v = 0;
  LOWBIT_ASSERT(parse_number(value(name, OptionKind::integer).text, v));
  return v;
}
double Options::real(std::string_view name) const {
  double v = 0;
  LOWBIT_ASSERT(parse_number(value(name, OptionKind::real).text, v));
  return v;
}
std::vector<double> Options::reals(std::string_view name, size_t count) const {
  const std::string& s = value(name, OptionKind::reals).text;
  std::vector<double> values;
  if (!s.empty())
    for (const auto& part : split(s, ',')) {
      values.push_back(0);
      LOWBIT_ASSERT(parse_number(part, values.back()));
    }
  LOWBIT_CHECK(count == 0 || values.size() == count, usage, verb_->name, "--", name, " must be ", count,
               " numbers separated by commas (got '", s, "')");
  return values;
}
const std::string& Options::text(std::string_view name) const { return value(name, OptionKind::text).text; }
const std::string& Options::raw(std::string_view name) const {
  const auto it = values_.find(name);
  LOWBIT_ASSERT(it != values_.end());
  return it->second.text;
}
double Options::seconds(std::string_view name) const {
  const std::string& s = value(name, OptionKind::seconds).text;
  double v = 0;
  if (!s.empty()) LOWBIT_ASSERT(parse_seconds(s, v));
  return v;
}
OptionOrigin Options::origin(std::string_view name) const {
  const auto it = values_.find(name);
  LOWBIT_ASSERT(it != values_.end());
  return it->second.origin;
}

void Options::set(std::string_view key, const std::string& text, OptionOrigin origin) {
  const OptionSpec* o = find_option(key, verb_->mask);
  if (!o) {
    const std::string_view hint = nearest_option(key, verb_->mask);
    const bool elsewhere = find_option(key) != nullptr;
    fail(ErrorKind::usage, verb_->name,
         str_cat("unknown option '", origin == OptionOrigin::command_line ? "--" : "", key, "'",
                 elsewhere      ? str_cat("; it belongs to another verb, see 'lowbit help ", verb_->name, "'")
                 : hint.empty() ? str_cat("; see 'lowbit help ", verb_->name, "'")
                                : str_cat("; did you mean --", hint, "?")));
  }
  std::string normal = checked(*o, text, verb_->name);
  Value& v = values_.find(o->name)->second;
  if (origin >= v.origin) v = {std::move(normal), origin};
}

std::string Options::ini() const {
  std::string out = str_cat("# lowbit ", verb_->name, "\n");
  for (int g = 0; g < kOptionGroups; ++g) {
    std::string lines;
    for (const OptionSpec& o : option_table()) {
      if (int(o.group) != g || !(o.verbs & verb_->mask) || o.transient) continue;
      const std::string& v = values_.find(o.name)->second.text;
      if (v.empty() && !*o.fallback) continue;
      LOWBIT_CHECK(v.find_first_of("#\n") == v.npos, usage, verb_->name, "the value of --", o.name,
                   " cannot be written in an INI file (got '", v, "'); use args.json");
      lines += str_cat(o.name, " = ", v, "\n");
    }
    if (lines.empty()) continue;
    std::string title = group_title(OptionGroup(g));
    title[0] = char(std::tolower(title[0]));
    out += str_cat("\n[", title, "]\n", lines);
  }
  return out;
}

std::string Options::args_json() const {
  nlohmann::ordered_json j;
  j["verb"] = verb_->name;
  j["positional"] = positional_;
  for (const OptionSpec& o : option_table()) {
    if (!(o.verbs & verb_->mask)) continue;
    const Value& v = values_.find(o.name)->second;
    if (o.transient && v.origin == OptionOrigin::fallback) continue;
    j["options"][o.name] = {{"value", v.text}, {"origin", origin_name(v.origin)}};
  }
  return j.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

/// Fills an Options from the five sources, weakest last read, so that each value is checked where it stands.
struct OptionParser {
  Options options;
  const VerbSpec& verb;

  /// "--learning_rate=1" → "--lr=1": canonical names, so that Boost knows only those.
  std::string canonical(const std::string& word) const {
    if (word.size() < 3 || word.compare(0, 2, "--") != 0) return word;
    const size_t end = std::min(word.find('='), word.size());
    const std::string name = word.substr(2, end - 2);
    if (const OptionSpec* o = find_option(name, verb.mask)) return str_cat("--", o->name, word.substr(end));
    if (name.size() > 3 && (name.starts_with("no-") || name.starts_with("no_")))
      if (const OptionSpec* o = find_option(name.substr(3), verb.mask); o && o->kind == OptionKind::flag)
        return str_cat("--no-", o->name, word.substr(end));
    return word;
  }

  po::options_description description() const {
    po::options_description d;
    for (const OptionSpec& o : option_table()) {
      if (!(o.verbs & verb.mask)) continue;
      const std::string name = o.letter ? str_cat(o.name, ",", o.letter) : std::string(o.name);
      if (o.kind == OptionKind::flag) {
        d.add_options()(name.c_str(), po::bool_switch());
        d.add_options()(str_cat("no-", o.name).c_str(), po::bool_switch());
      } else {
        d.add_options()(name.c_str(), po::value<std::string>());
      }
    }
    return d;
  }

  po::basic_parsed_options<char> parse_words(const std::vector<std::string>& words,
                                             const po::options_description& known) const {
    std::vector<std::string> normal;
    for (const auto& w : words) normal.push_back(canonical(w));
    namespace style = po::command_line_style;
    try {
      return po::command_line_parser(normal)
          .options(known)
          .style(style::unix_style & ~style::allow_guessing)
          .run();
    } catch (const po::unknown_option& e) {
      std::string name = e.get_option_name();
      name.erase(0, name.find_first_not_of('-'));
      Options(verb).set(name, "", OptionOrigin::command_line);  // throws with the nearest name
      fail(ErrorKind::usage, verb.name, e.what());
    } catch (const po::error& e) {
      fail(ErrorKind::usage, verb.name, e.what());
    }
  }

  void command_line(const std::vector<std::string>& words) {
    const auto known = description();
    const auto parsed = parse_words(words, known);
    std::vector<std::string> sets;
    for (const auto& o : parsed.options) {
      if (o.position_key >= 0) {
        options.positional_.push_back(o.value.at(0));
      } else if (o.string_key == "set") {
        sets.push_back(o.value.at(0));
      } else if (const OptionSpec* spec = find_option(o.string_key, verb.mask)) {
        const bool is_flag = spec->kind == OptionKind::flag;
        options.set(spec->name, is_flag ? "on" : o.value.at(0), OptionOrigin::command_line);
      } else {
        options.set(o.string_key.substr(3), "off", OptionOrigin::command_line);
      }
    }
    for (const auto& s : sets) {
      const size_t eq = s.find('=');
      LOWBIT_CHECK(eq != s.npos && eq > 0, usage, verb.name, "--set must be KEY=VALUE (got '", s, "')");
      options.set(trimmed(s.substr(0, eq)), s.substr(eq + 1), OptionOrigin::set);
    }
  }

  void check_positional() const {
    const int n = int(options.positional_.size());
    if (n >= verb.min_positional && n <= verb.max_positional) return;
    const std::string expected = *verb.positional ? verb.positional : "no arguments";
    fail(ErrorKind::usage, verb.name,
         n > verb.max_positional
             ? str_cat("unexpected argument '", options.positional_[size_t(verb.max_positional)],
                       "'; expected ", expected)
             : str_cat("expected ", expected, " (got ", n, " arguments)"));
  }

  void environment() {
    for (const OptionSpec& o : option_table())
      if ((o.verbs & verb.mask) && std::string_view(o.name) != "set")
        if (const char* v = std::getenv(environment_name(o.name).c_str()); v && *v) {
          try {
            options.set(o.name, v, OptionOrigin::environment);
          } catch (const Error& e) {
            fail(ErrorKind::usage, environment_name(o.name), e.what());
          }
        }
  }

  void config_file(const std::string& path) {
    std::ifstream in(path);
    LOWBIT_CHECK(in.good(), io, "config", "cannot read '", path, "'");
    config_stream(in, path);
  }

  void config_stream(std::istream& in, const std::string& path) {
    try {
      if (path.ends_with(".json")) return json(nlohmann::json::parse(in), path);
      const po::options_description none;
      for (const auto& o : po::parse_config_file(in, none, true).options)
        options.set(without_section(o.string_key), o.value.empty() ? "" : o.value[0],
                    OptionOrigin::config_file);
    } catch (const Error& e) {
      fail(ErrorKind::usage, str_cat("config file '", path, "'"), e.what());
    } catch (const std::exception& e) {
      fail(ErrorKind::io, "config", str_cat("'", path, "' cannot be parsed: ", e.what()));
    }
  }

  void json(const nlohmann::json& j, const std::string& path) {
    LOWBIT_CHECK(j.is_object(), io, "config", "'", path, "' must hold a JSON object");
    const bool args = j.contains("options") && j.contains("verb");  // args.json of an earlier run
    for (const auto& [key, v] : (args ? j.at("options") : j).items()) {
      const OptionSpec* o = find_option(key);
      if (args && o && (o->transient || !(o->verbs & verb.mask))) continue;
      const bool section = v.is_object() && !v.contains("value") && !o;
      if (!section) {
        options.set(key, json_text(v, key, verb.name), OptionOrigin::config_file);
        continue;
      }
      for (const auto& [inner, value] : v.items())
        options.set(without_section(key + "." + inner), json_text(value, inner, verb.name),
                    OptionOrigin::config_file);
    }
  }
};

Options parse_options(const VerbSpec& verb, const std::vector<std::string>& words) {
  OptionParser parser{Options(verb), verb};
  parser.command_line(words);
  Options& o = parser.options;
  if (o.flag("help") || o.flag("help-all")) return o;
  parser.check_positional();
  parser.environment();
  if (!o.text("config").empty()) parser.config_file(o.text("config"));
  return o;
}

void take_ini(Options& o, const std::string& text, const std::string& what) {
  OptionParser parser{o, o.verb()};
  std::istringstream in(text);
  parser.config_stream(in, what);
  o = std::move(parser.options);
}

void require_option(const Options& o, std::string_view name) {
  LOWBIT_CHECK(!o.text(name).empty(), usage, o.verb().name, "--", name, " is required");
}

}  // namespace lowbit
