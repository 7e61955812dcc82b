#include "train/apps/run_main.h"

#include <cstdio>
#include <new>

#include "tensor/core/backend.h"
#include "tensor/core/context.h"
#include "tensor/core/error.h"
#include "tensor/core/thread_pool.h"
#include "train/config/backward.h"
#include "train/config/build_info.h"
#include "train/config/device.h"
#include "train/config/help.h"
#include "train/dist/communicator.h"

namespace lowbit {
namespace {

void print(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }

std::string version_text() {
  std::string s = "lowbit " + build_version() + "\n";
  for (const auto& [what, value] : build_info())
    if (what != "version" && !value.empty()) s += str_cat("  ", what, ": ", value, "\n");
  return s;
}

[[noreturn]] void unknown_verb(const std::string& word) {
  const std::string_view hint = nearest_verb(word);
  fail(ErrorKind::usage, "usage",
       str_cat("unknown verb '", word, "'; ",
               hint.empty() ? "see 'lowbit help'" : str_cat("did you mean '", hint, "'?")));
}

const VerbSpec& verb_of(const std::string& word) {
  const VerbSpec* v = find_verb(word);
  if (!v) unknown_verb(word);
  return *v;
}

void apply_switches(const Options& o) {
  const auto has = [&](const char* name) { return find_option(name, o.verb().mask) != nullptr; };
  if (has("device") && !run_device(o).is_cuda() && o.text("device") == "auto")
    std::fprintf(stderr, "lowbit: running on the CPU: %s\n", cuda_unusable().c_str());
  if (has("threads")) set_threads(int(o.integer("threads")));
  Context& c = context();
  if (has("deterministic")) c.determinism = o.flag("deterministic") ? Determinism::strict : Determinism::fast;
  if (has("integer-products")) c.integer_products = o.flag("integer-products");
  if (has("precision"))
    c.gemm = o.text("precision") == "tf32"   ? MathMode::tf32
             : o.text("precision") == "bf16" ? MathMode::bf16
                                             : MathMode::f32;
  if (has("library-products")) c.library_products = o.flag("library-products");
  if (has("backward")) c.backward = backward_products(o);
  if (has("check-finite")) c.check_finite = o.flag("check-finite");
}

int help(const std::vector<std::string>& words, const std::function<std::string()>& models) {
  if (words.size() < 2 || words[1] == "help") {
    print(help_overview() + "\nDevices: " + devices_line() + "\n");
  } else if (words[1] == "models") {
    print(models());
  } else {
    print(help_verb(verb_of(words[1]), words.size() > 2 && words[2] == "--help-all"));
  }
  return kExitSuccess;
}

int run_words(const std::vector<std::string>& command_line, std::span<const VerbMain> verbs,
              const std::function<std::string()>& models) {
  const std::vector<std::string> words(command_line.begin() + (command_line.empty() ? 0 : 1),
                                       command_line.end());
  LOWBIT_CHECK(!words.empty(), usage, "usage", "lowbit VERB [options]; see 'lowbit help'");
  const std::string& first = words[0];
  if (first == "help" || first == "--help" || first == "-h") return help(words, models);
  if (first == "--help-all") {
    for (const VerbSpec& v : verb_table()) print(help_verb(v, true) + "\n");
    return kExitSuccess;
  }
  if (first == "--version" || first == "--help-man" || first == "--help-completion") {
    print(first == "--version" ? version_text() : first == "--help-man" ? man_page() : bash_completion());
    return kExitSuccess;
  }
  const VerbSpec& verb = verb_of(first);
  const Options o = parse_options(verb, {words.begin() + 1, words.end()});
  if (o.flag("help") || o.flag("help-all")) {
    print(help_verb(verb, o.flag("help-all")));
    return kExitSuccess;
  }
  if (o.flag("print-config")) {
    print(o.ini());
    return kExitSuccess;
  }
  for (const VerbMain& v : verbs) {
    if (v.name != first) continue;
    apply_switches(o);
    return v.run(o, command_line);
  }
  unknown_verb(first);
}

}  // namespace

int exit_code(ErrorKind kind) {
  return kind == ErrorKind::usage     ? kExitUsage
         : kind == ErrorKind::io      ? kExitInput
         : kind == ErrorKind::numeric ? kExitNumeric
                                      : kExitFailure;
}

int exit_code_of(const std::function<int()>& f) {
  std::string text;
  int code = kExitFailure;
  try {
    code = f();
    // A full disk shows only when the buffer is written.
    if (std::fflush(stdout) == 0 && !std::ferror(stdout)) return code;
    text = "stdout: cannot write the result";
    code = kExitFailure;
  } catch (const Error& e) {
    text = e.what();
    code = exit_code(e.kind());
  } catch (const RankFailure& e) {
    text = e.what(), code = e.code();
  } catch (const std::bad_alloc&) {
    text = "out of memory";
  } catch (const std::exception& e) {
    text = e.what();
  }
  std::fflush(stdout);
  std::fprintf(stderr, "lowbit: %s\n", text.c_str());
  return code;
}

int run_main(int argc, char** argv, std::span<const VerbMain> verbs,
             const std::function<std::string()>& models) {
  const std::vector<std::string> command_line(argv, argv + argc);
  return exit_code_of([&] { return run_words(command_line, verbs, models); });
}

}  // namespace lowbit
