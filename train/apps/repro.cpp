// The verb that reproduces a published result: runs a recipe and what it starts from, and judges the outcome.

#include <cstdio>
#include <filesystem>

#include "tensor/core/error.h"
#include "train/apps/ranks.h"
#include "train/apps/run_main.h"
#include "train/apps/verbs.h"
#include "train/config/recipe.h"
#include "train/step/trainer.h"

namespace lowbit {
namespace {

constexpr const char* kSmoke[][2] = {{"max-steps", "2"}, {"batch-size", "2"},         {"accumulate", "1"},
                                     {"limit-val", "4"}, {"calibration-images", "2"}, {"aug-repeats", "0"},
                                     {"log-every", "1"}, {"eval-batch-size", "4"}};

class Reproduction {
 public:
  Reproduction(const Options& given, const std::vector<std::string>& command_line)
      : given_(given), command_line_(command_line), smoke_(given.flag("smoke")) {}

  /// Exit code; the outcome is that of the recipe itself, not of its start.
  int run(const Recipe& r, bool is_start, TrainOutcome& outcome) {
    Options o = given_;
    take_ini(o, r.text, "recipe " + r.name);
    if (smoke_)
      for (const auto& [key, value] : kSmoke) o.set(key, value, OptionOrigin::set);
    o.set("run", run_name(r.name), is_start ? OptionOrigin::command_line : OptionOrigin::set);
    const std::string needed = r.fact("needs");
    LOWBIT_CHECK(needed.empty() || o.given(needed), usage, "repro", r.name, " needs --", needed);
    // A float start learns the images' own labels.
    if (is_start && needed.empty()) o.set("soft-labels", "", OptionOrigin::command_line);
    if (given_.flag("dry-run")) {
      o.set("teacher", "", OptionOrigin::command_line);
    } else if (const int code = find_weights(r, o); code != kExitSuccess) {
      return code;
    }
    return train_model(o, command_line_, outcome);
  }

 private:
  /// Smoke runs have names of their own, so that a real run does not go on from one.
  std::string run_name(const std::string& recipe) const { return smoke_ ? "smoke-" + recipe : recipe; }
  std::filesystem::path folder(const std::string& recipe) const {
    return std::filesystem::path(given_.text("output")) / run_name(recipe);
  }
  std::string last_weights(const std::string& recipe) const {
    return (folder(recipe) / "last.safetensors").string();
  }

  /// Sets --weights and --teacher-weights, after running what the recipe starts from.
  int find_weights(const Recipe& r, Options& o) {
    const std::string start = r.fact("start");
    std::string file = given_.text("weights");
    if (!r.fact("weights").empty()) {
      if (const int code = float_weights(r, o, file); code != kExitSuccess) return code;
      if (!o.text("teacher").empty() && !o.given("teacher-weights"))
        o.set("teacher-weights", file, OptionOrigin::config_file);
    }
    // --weights is the float model of the whole chain where that needs one, else what the start would give.
    if (!start.empty() && (file.empty() || !r.fact("weights").empty())) {
      std::fprintf(stderr, "lowbit repro: %s starts from %s\n", r.name.c_str(), start.c_str());
      TrainOutcome before;
      if (const int code = run(find_recipe(start), true, before); code != kExitSuccess) return code;
      file = last_weights(start);
      if (r.fact("moments") == "start") o.set("moments", folder(start).string(), OptionOrigin::command_line);
    }
    if (!file.empty()) o.set("weights", file, OptionOrigin::command_line);
    return kExitSuccess;
  }

  /// The public float weights: given, or for a smoke run a fresh model.
  int float_weights(const Recipe& r, const Options& recipe, std::string& file) {
    if (!file.empty()) return kExitSuccess;
    LOWBIT_CHECK(smoke_, usage, "repro", r.name, " needs --weights FILE: the public float weights ",
                 r.fact("weights"));
    const std::string untrained = r.fact("weights") + "-untrained";
    file = last_weights(untrained);
    if (std::filesystem::exists(file)) return kExitSuccess;
    Options o = given_;
    const char* layout = recipe.text("teacher").empty() ? "model" : "teacher";
    o.set("model", recipe.text(layout), OptionOrigin::command_line);
    o.set("soft-labels", "", OptionOrigin::command_line);
    o.set("epochs", "0", OptionOrigin::command_line),
        o.set("run", run_name(untrained), OptionOrigin::command_line);
    o.set("batch-size", "2", OptionOrigin::command_line);
    TrainOutcome nothing;
    return train_model(o, command_line_, nothing);
  }

  const Options& given_;
  const std::vector<std::string>& command_line_;
  bool smoke_;
};

/// Runs a recipe and prints the verdict; an exit code.
int reproduce(const Options& o, const std::vector<std::string>& command_line, const Recipe& r,
              Communicator& ranks) {
  TrainOutcome outcome;
  const int code = Reproduction(o, command_line).run(r, false, outcome);
  if (code != kExitSuccess || o.flag("dry-run") || o.flag("eval-only")) return code;
  if (o.flag("smoke")) {
    if (ranks.lead())
      std::printf("%s: ran %lld steps; published %s, no verdict from a smoke run\n", r.name.c_str(),
                  static_cast<long long>(outcome.steps),
                  r.fact("published").empty() ? "no number" : r.fact("published").c_str());
    return kExitSuccess;
  }
  const Verdict v = judge(r, outcome.best_top1, outcome.last.counts.total, o.real("within"));
  if (ranks.lead()) std::printf("%s\n", v.text.c_str());
  return v.reproduced ? kExitSuccess : kExitFailure;
}

}  // namespace

int run_repro(const Options& o, const std::vector<std::string>& command_line) {
  if (o.flag("list")) {
    std::fputs(recipe_list().c_str(), stdout);
    return kExitSuccess;
  }
  LOWBIT_CHECK(o.positional().size() == 1, usage, "repro",
               "expected the name of a recipe; 'lowbit repro --list' lists them");
  const Recipe r = find_recipe(o.positional()[0]);
  return run_as_rank(
      o, [&](const Options&, Communicator& ranks) { return reproduce(o, command_line, r, ranks); });
}

}  // namespace lowbit
