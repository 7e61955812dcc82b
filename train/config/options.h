#pragma once
// Options of one invocation: values with their origin, checked against the table of option_table.h.
// Precedence: command line > --set > environment LOWBIT_KEY > config file > weight file > default.

#include <array>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "train/config/option_table.h"

namespace lowbit {

enum class OptionOrigin : uint8_t {
  fallback,
  machine,
  weight_file,
  config_file,
  environment,
  set,
  command_line
};
const char* origin_name(OptionOrigin o);  ///< "default", "config file", …

/// Getters take the canonical name; asking for an option that the verb does not have is an internal error.
class Options {
 public:
  Options() = default;
  explicit Options(const VerbSpec& verb);  ///< all defaults

  const VerbSpec& verb() const { return *verb_; }
  const std::vector<std::string>& positional() const { return positional_; }
  bool flag(std::string_view name) const;
  int64_t integer(std::string_view name) const;
  double real(std::string_view name) const;
  /// Empty when the value is empty. With count > 0, throws Error(usage) unless there are exactly so many.
  std::vector<double> reals(std::string_view name, size_t count = 0) const;
  const std::string& text(std::string_view name) const;
  const std::string& raw(std::string_view name) const;  ///< of any kind, as written
  double seconds(std::string_view name) const;          ///< 0 when the value is empty
  bool given(std::string_view name) const { return origin(name) != OptionOrigin::fallback; }
  OptionOrigin origin(std::string_view name) const;

  /// Checks the value and stores it unless a stronger origin has already set the option. Throws Error(usage)
  /// that names the option. `key` may be an alias.
  void set(std::string_view key, const std::string& value, OptionOrigin origin);

  /// INI text that repeats this run (--print-config).
  std::string ini() const;
  /// args.json: {"verb", "positional", "options": {name: {"value", "origin"}}}; accepted by --config.
  std::string args_json() const;

 private:
  friend struct OptionParser;
  struct Value {
    std::string text;
    OptionOrigin origin = OptionOrigin::fallback;
  };
  const Value& value(std::string_view name, OptionKind kind) const;
  const VerbSpec* verb_ = nullptr;
  std::map<std::string, Value, std::less<>> values_;
  std::vector<std::string> positional_;
};

/// Parses the words after the verb. Throws Error(usage): unknown option (with the nearest name), missing or
/// unexpected value, value out of range, wrong number of arguments; Error(io): unreadable config file.
/// --help and --help-all stop the parsing: only these flags are then set.
Options parse_options(const VerbSpec& verb, const std::vector<std::string>& words);

/// Takes the options of an INI text as those of a config file; `what` names it in errors.
void take_ini(Options& o, const std::string& text, const std::string& what);

/// --data must be given unless --synthetic, …: throws `--<name> is required`.
void require_option(const Options& o, std::string_view name);

}  // namespace lowbit
