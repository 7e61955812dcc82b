#include "train/config/help.h"

#include <cmath>
#include <sstream>

#include "tensor/core/error.h"
#include "train/config/build_info.h"

namespace lowbit {
namespace {

constexpr size_t kWidth = 100, kIndent = 6;

constexpr const char* kExitCodes =
    "0 success; 1 failure at run time; 2 wrong usage; 3 unreadable or inconsistent input file; "
    "4 numerical failure; 75 stopped by a signal or a time limit after a clean checkpoint: "
    "the same command with the same --run continues";

/// Words of `text` on lines of at most kWidth characters, all indented.
std::string wrapped(const std::string& text, size_t indent) {
  std::istringstream in(text);
  std::string out, line(indent, ' '), word;
  while (in >> word) {
    if (line.size() > indent && line.size() + 1 + word.size() > kWidth) {
      out += line + "\n";
      line.assign(indent, ' ');
    }
    line += (line.size() > indent ? " " : "") + word;
  }
  return line.size() > indent ? out + line + "\n" : out;
}

std::string signature(const OptionSpec& o) {
  if (o.kind == OptionKind::flag) return str_cat("--", o.name, o.transient ? "" : str_cat(", --no-", o.name));
  return str_cat("--", o.name, " ", *o.unit ? o.unit : "X");
}

std::string range_text(const OptionSpec& o) {
  if (*o.choices) return o.choices;
  const bool low = std::isfinite(o.lo), high = std::isfinite(o.hi);
  std::string s;
  if (low && high) s = str_cat(o.lo, " to ", o.hi);
  if (low && !high) s = str_cat("at least ", o.lo);
  if (!std::isnan(o.also)) s += str_cat(", or ", o.also, " (", o.also_means, ")");
  return s;
}

/// "help text [default 5; 0 to 10; follows timm; also --x]"
std::string description(const OptionSpec& o) {
  std::string notes = str_cat("default ", *o.fallback ? o.fallback : "empty");
  if (const std::string r = range_text(o); !r.empty()) notes += "; " + r;
  if (*o.source) notes += str_cat("; as in ", o.source);
  std::string aliases;
  std::istringstream in(o.aliases);
  for (std::string a; in >> a;) aliases += (aliases.empty() ? "--" : ", --") + a;
  if (!aliases.empty()) notes += "; also " + aliases;
  return str_cat(o.help, " [", notes, "]");
}

template <class F>
void for_each_option(unsigned verbs, bool all, OptionGroup g, F&& f) {
  for (const OptionSpec& o : option_table())
    if ((o.verbs & verbs) && o.group == g && (all || !o.rare)) f(o);
}

std::string usage_line(const VerbSpec& v) {
  return str_cat("lowbit ", v.name, *v.positional ? " " : "", v.positional, " [options]");
}

std::string troff(const std::string& s) {
  std::string out;
  for (char c : s) out += c == '\\' ? std::string("\\\\") : c == '-' ? std::string("\\-") : std::string(1, c);
  return out;
}

}  // namespace

std::string help_overview() {
  std::string s = "lowbit: low-bit training of transformers\n\nUsage: lowbit VERB [options]\n\nVerbs\n";
  for (const VerbSpec& v : verb_table()) {
    std::string name = str_cat("  ", v.name, *v.positional ? " " : "", v.positional);
    name.resize(22, ' ');
    s += str_cat(name, v.summary, "\n");
  }
  s += "  help [VERB|models]  this text, the options of a verb, or the list of models\n";
  s += "\n'lowbit VERB --help' lists the options of a verb, '--help-all' the rare ones too;\n";
  s += "'lowbit --version' says what this program was built with; '--help-man' prints a manual page,\n";
  s += "'--help-completion' a completion script for bash.\n";
  s += "Options may be written with dashes or underscores. Where they come from, strongest first:\n";
  s +=
      "command line, --set KEY=VALUE, environment LOWBIT_KEY, --config FILE, settings stored in --weights,\n";
  s += "default.\n";
  return s + "\nExit codes\n" + wrapped(kExitCodes, 2);
}

std::string help_verb(const VerbSpec& verb, bool all) {
  std::string s = str_cat(verb.name, ": ", verb.summary, "\n\nUsage: ", usage_line(verb), "\n");
  for (int g = 0; g < kOptionGroups; ++g) {
    std::string lines;
    for_each_option(verb.mask, all, OptionGroup(g), [&](const OptionSpec& o) {
      const std::string letter = o.letter ? str_cat("-", o.letter, ", ") : "";
      lines += str_cat("  ", letter, signature(o), "\n", wrapped(description(o), kIndent));
    });
    if (!lines.empty()) s += str_cat("\n", group_title(OptionGroup(g)), "\n", lines);
  }
  if (!all) s += "\n'--help-all' lists rarely used options too.\n";
  return s;
}

std::string man_page() {
  std::string s = str_cat(".TH LOWBIT 1 \"\" \"lowbit ", build_version(), "\"\n.SH NAME\n",
                          "lowbit \\- low\\-bit training of transformers\n.SH SYNOPSIS\n");
  for (const VerbSpec& v : verb_table()) s += str_cat(".B ", troff(usage_line(v)), "\n.br\n");
  for (const VerbSpec& v : verb_table()) {
    s += str_cat(".SH ", v.name, "\n", troff(v.summary), ".\n");
    for (int g = 0; g < kOptionGroups; ++g)
      for_each_option(v.mask, true, OptionGroup(g), [&](const OptionSpec& o) {
        s += str_cat(".TP\n.B ", troff(signature(o)), "\n", troff(description(o)), "\n");
      });
  }
  return s + ".SH EXIT STATUS\n" + troff(kExitCodes) + ".\n";
}

std::string bash_completion() {
  std::string verbs, cases;
  for (const VerbSpec& v : verb_table()) {
    verbs += str_cat(v.name, " ");
    cases += str_cat("    ", v.name, ") words=\"");
    for (const OptionSpec& o : option_table())
      if (o.verbs & v.mask) cases += str_cat("--", o.name, " ");
    cases += "\" ;;\n";
  }
  std::string values;
  for (const OptionSpec& o : option_table()) {
    if (!*o.choices) continue;
    std::string words = o.choices;
    for (char& c : words) c = c == '|' ? ' ' : c;
    values +=
        str_cat("    --", o.name, ") COMPREPLY=($(compgen -W \"", words, "\" -- \"$cur\")); return ;;\n");
  }
  return str_cat(
      "_lowbit() {\n  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words\n",
      "  if [ \"$COMP_CWORD\" -eq 1 ]; then\n    COMPREPLY=($(compgen -W \"", verbs,
      "help --version\" -- \"$cur\")); return\n  fi\n  case $prev in\n", values,
      "  esac\n  case ${COMP_WORDS[1]} in\n", cases,
      "  esac\n  case $cur in\n    -*) COMPREPLY=($(compgen -W \"$words\" -- \"$cur\")) ;;\n",
      "    *) COMPREPLY=($(compgen -f -- \"$cur\")) ;;\n  esac\n}\ncomplete -o filenames -F _lowbit "
      "lowbit\n");
}

}  // namespace lowbit
