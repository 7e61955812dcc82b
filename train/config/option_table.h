#pragma once
// The table of all options and verbs: the only place where a name, default, unit or range is written down.

#include <limits>
#include <span>
#include <string_view>

namespace lowbit {

enum class OptionGroup : uint8_t {
  data,
  model,
  quantization,
  optimisation,
  distillation,
  distributed,
  output,
  debug
};
inline constexpr int kOptionGroups = 8;
const char* group_title(OptionGroup g);  ///< "Data", …

/// flag: --x / --no-x, on|off in files; reals: comma-separated numbers; seconds: N, M:S, H:M:S or D-H:M:S.
enum class OptionKind : uint8_t { flag, integer, real, reals, text, seconds };

enum VerbMask : unsigned {
  kTrain = 1,
  kEval = 2,
  kInspect = 4,
  kDiff = 8,
  kConvert = 16,
  kBench = 32,
  kReport = 64,
  kLabels = 128,
  kRepro = 256,        ///< has the options of train too
  kSensitivity = 512,  ///< has the options of eval too
  kRunVerbs = kTrain | kEval,
  kAllVerbs = 1023
};

struct OptionDetail {
  const char* source = "";   ///< the paper, program or convention it follows
  const char* choices = "";  ///< "a|b|c" for text
  const char* aliases = "";  ///< space-separated other spellings with the same meaning
  double lo = -std::numeric_limits<double>::infinity(), hi = std::numeric_limits<double>::infinity();
  double also = std::numeric_limits<double>::quiet_NaN();  ///< one more legal value, outside [lo, hi]
  const char* also_means = "";
  char letter = 0;         ///< one-letter form
  bool rare = false;       ///< only in --help-all
  bool transient = false;  ///< not part of what a run is: left out of --print-config
};

struct OptionSpec : OptionDetail {
  constexpr OptionSpec(const char* n, OptionGroup g, OptionKind k, unsigned v, const char* f, const char* u,
                       const char* h, OptionDetail d = {})
      : OptionDetail(d), name(n), group(g), kind(k), verbs(v), fallback(f), unit(u), help(h) {}
  const char* name;  ///< canonical spelling, dashes
  OptionGroup group;
  OptionKind kind;
  unsigned verbs;
  const char* fallback;  ///< the effective default, as text
  const char* unit;      ///< what the value is, e.g. "DIR", "N", "epochs"
  const char* help;
};

struct VerbSpec {
  const char* name;
  unsigned mask;
  const char* summary;
  const char* positional;  ///< "IN OUT"; a trailing "..." would allow more, "[X]" is optional
  int min_positional, max_positional;
};

std::span<const OptionSpec> option_table();
std::span<const VerbSpec> verb_table();
/// By canonical name, alias, either with dashes or underscores; null when unknown.
const OptionSpec* find_option(std::string_view name, unsigned verbs = kAllVerbs);
const VerbSpec* find_verb(std::string_view name);
/// The closest known option name, or "" when nothing is near.
std::string_view nearest_option(std::string_view name, unsigned verbs);
std::string_view nearest_verb(std::string_view name);

}  // namespace lowbit
