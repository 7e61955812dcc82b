#include "train/config/options.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>

#include "tensor/core/error.h"
#include "train/config/help.h"

namespace lowbit {
namespace {

const VerbSpec& train_verb() { return *find_verb("train"); }
Options parse(const std::vector<std::string>& words) { return parse_options(train_verb(), words); }

/// Text and kind of the error that parsing gives.
std::string error_of(const std::vector<std::string>& words, ErrorKind kind = ErrorKind::usage,
                     const char* verb = "train") {
  try {
    parse_options(*find_verb(verb), words);
  } catch (const Error& e) {
    EXPECT_EQ(int(e.kind()), int(kind));
    return e.what();
  }
  return "no error";
}

struct TempFile {
  std::string path;
  TempFile(const std::string& name, const std::string& content)
      : path((std::filesystem::temp_directory_path() / ("lowbit_" + std::to_string(getpid()) + name))
                 .string()) {
    std::ofstream(path) << content;
  }
  ~TempFile() { std::filesystem::remove(path); }
};

struct Env {
  const char* name;
  Env(const char* n, const char* v) : name(n) { setenv(n, v, 1); }
  ~Env() { unsetenv(name); }
};

TEST(OptionTable, EveryEntryIsConsistent) {
  std::set<std::string> names;
  for (const OptionSpec& o : option_table()) {
    EXPECT_TRUE(names.insert(o.name).second) << o.name;
    EXPECT_EQ(std::string(o.name).find('_'), std::string::npos) << o.name;
    EXPECT_TRUE(*o.help) << o.name;
    std::string aliases = o.aliases;
    for (size_t b = 0; b < aliases.size();) {
      const size_t e = std::min(aliases.find(' ', b), aliases.size());
      EXPECT_TRUE(names.insert(aliases.substr(b, e - b)).second) << o.name;
      b = e + 1;
    }
  }
  for (const VerbSpec& v : verb_table())
    for (const OptionSpec& o : option_table())
      if ((o.verbs & v.mask) && *o.fallback) {
        EXPECT_NO_THROW(Options(v).set(o.name, o.fallback, OptionOrigin::command_line)) << o.name;
      }
}

TEST(Options, DefaultsAreTyped) {
  const Options o = parse({});
  EXPECT_EQ(o.text("model"), "deit_tiny_patch16_224");
  EXPECT_EQ(o.integer("wbits"), 32);
  EXPECT_EQ(o.real("lr"), 5e-4);
  EXPECT_EQ(o.reals("opt-betas"), (std::vector<double>{0.9, 0.999}));
  EXPECT_TRUE(o.flag("tensorboard"));
  EXPECT_FALSE(o.flag("model-ema"));
  EXPECT_FALSE(o.given("lr"));
  EXPECT_EQ(o.seconds("time-limit"), 0);
}

TEST(Options, DashesUnderscoresAliasesAndLetters) {
  const Options o =
      parse({"--batch_size", "16", "--num_train_epochs=3", "--learning-rate", "1e-3", "--model-type=x", "-j",
             "4", "--no_tensorboard", "--model-ema", "--weight_decay=0"});
  EXPECT_EQ(o.integer("batch-size"), 16);
  EXPECT_EQ(o.integer("epochs"), 3);
  EXPECT_EQ(o.real("lr"), 1e-3);
  EXPECT_EQ(o.text("model"), "x");
  EXPECT_EQ(o.integer("workers"), 4);
  EXPECT_FALSE(o.flag("tensorboard"));
  EXPECT_TRUE(o.flag("model-ema"));
  EXPECT_EQ(int(o.origin("weight-decay")), int(OptionOrigin::command_line));
}

TEST(Options, FlagsDoNotSwallowTheNextWord) {
  EXPECT_NE(error_of({"--model-ema", "train"}).find("unexpected argument 'train'"), std::string::npos);
}

TEST(Options, TheLastMentionWins) {
  EXPECT_EQ(parse({"--lr", "1", "--lr", "2"}).real("lr"), 2);
  EXPECT_TRUE(parse({"--no-model-ema", "--model-ema"}).flag("model-ema"));
}

TEST(Options, NoPrefixGuessing) {
  EXPECT_EQ(error_of({"--epo", "3"}), "train: unknown option '--epo'; did you mean --epochs?");
  EXPECT_EQ(error_of({"--wbit", "3"}), "train: unknown option '--wbit'; did you mean --wbits?");
  EXPECT_EQ(error_of({"--epcohs", "3"}), "train: unknown option '--epcohs'; did you mean --epochs?");
  EXPECT_EQ(error_of({"--zzzzzzzz"}), "train: unknown option '--zzzzzzzz'; see 'lowbit help train'");
  EXPECT_EQ(error_of({"--dtype", "f16"}),
            "train: unknown option '--dtype'; it belongs to another verb, see 'lowbit help train'");
}

TEST(Options, RangesNameTheOption) {
  EXPECT_EQ(error_of({"--wbits", "9"}), "train: --wbits must be between 1 and 8 (got 9); 32 means float");
  EXPECT_EQ(error_of({"--abits=0"}), "train: --abits must be between 1 and 8 (got 0); 32 means float");
  EXPECT_EQ(error_of({"--lr", "-1"}), "train: --lr must be between 0 and 1000 (got -1)");
  EXPECT_EQ(error_of({"--max-steps", "-5"}), "train: --max-steps must be at least 0 (got -5)");
  EXPECT_EQ(error_of({"--epochs", "3x"}), "train: --epochs must be a whole number (got '3x')");
  EXPECT_EQ(error_of({"--lr", "nan"}), "train: --lr must be a number (got 'nan')");
  EXPECT_EQ(error_of({"--opt-betas", "0.9,2"}), "train: --opt-betas must be between 0 and 1 (got 2)");
  EXPECT_EQ(error_of({"--opt", "lamb"}), "train: --opt must be one of adamw|adam|sgd|momentum (got 'lamb')");
  EXPECT_EQ(error_of({"--time-limit", "1:x"}), "train: --time-limit must be seconds or H:M:S (got '1:x')");
  EXPECT_EQ(parse({"--wbits", "32"}).integer("wbits"), 32);
  EXPECT_THROW(parse({"--mean", "1,1"}).reals("mean", 3), Error);
}

TEST(Options, MissingValueAndArguments) {
  EXPECT_NE(error_of({"--lr"}).find("--lr"), std::string::npos);
  EXPECT_EQ(error_of({"a"}, ErrorKind::usage, "diff"), "diff: expected A B (got 1 arguments)");
  EXPECT_EQ(parse_options(*find_verb("diff"), {"a", "--filter", "x", "b"}).positional(),
            (std::vector<std::string>{"a", "b"}));
  EXPECT_THROW(require_option(parse({}), "data"), Error);
}

TEST(Options, TimesInSeveralForms) {
  EXPECT_EQ(parse({"--time-limit", "90"}).seconds("time-limit"), 90);
  EXPECT_EQ(parse({"--time-limit", "1:30"}).seconds("time-limit"), 90);
  EXPECT_EQ(parse({"--time-limit", "23:30:00"}).seconds("time-limit"), 84600);
  EXPECT_EQ(parse({"--time-limit", "1-00:00:01"}).seconds("time-limit"), 86401);
}

TEST(Options, PrecedenceAndOrigin) {
  const TempFile file(
      "a.ini", "# comment\nlr = 1\n[optimisation]\nepochs = 1\nweight_decay = 1\n[data]\nbatch_size = 7\n");
  const Env e1("LOWBIT_EPOCHS", "2"), e2("LOWBIT_WEIGHT_DECAY", "2");
  const Options o = parse({"--config", file.path, "--set", "weight_decay=3", "--set", "lr=4", "--lr", "5"});
  EXPECT_EQ(o.integer("batch-size"), 7);
  EXPECT_EQ(o.origin("batch-size"), OptionOrigin::config_file);
  EXPECT_EQ(o.integer("epochs"), 2);
  EXPECT_EQ(o.origin("epochs"), OptionOrigin::environment);
  EXPECT_EQ(o.real("weight-decay"), 3);
  EXPECT_EQ(o.origin("weight-decay"), OptionOrigin::set);
  EXPECT_EQ(o.real("lr"), 5);
  EXPECT_EQ(o.origin("lr"), OptionOrigin::command_line);
}

TEST(Options, JsonConfig) {
  const TempFile file(
      "a.json", R"({"lr": 0.5, "quantization": {"wbits": 4}, "opt_betas": [0.5, 0.75], "model-ema": true})");
  const Options o = parse({"--config", file.path});
  EXPECT_EQ(o.real("lr"), 0.5);
  EXPECT_EQ(o.integer("wbits"), 4);
  EXPECT_EQ(o.reals("opt-betas"), (std::vector<double>{0.5, 0.75}));
  EXPECT_TRUE(o.flag("model-ema"));
}

TEST(Options, BadConfigFiles) {
  const TempFile unknown("b.ini", "epohcs = 3\n"), broken("c.json", "{\"lr\": "),
      range("d.ini", "wbits = 9\n");
  EXPECT_NE(error_of({"--config", unknown.path}).find("unknown option 'epohcs'; did you mean --epochs?"),
            std::string::npos);
  EXPECT_NE(error_of({"--config", range.path}).find("--wbits must be between 1 and 8 (got 9)"),
            std::string::npos);
  EXPECT_NE(error_of({"--config", broken.path}, ErrorKind::io).find("cannot be parsed"), std::string::npos);
  EXPECT_NE(error_of({"--config", "/no/such/file.ini"}, ErrorKind::io).find("cannot read"),
            std::string::npos);
  const Env env("LOWBIT_WBITS", "9");
  EXPECT_NE(error_of({}).find("LOWBIT_WBITS: train: --wbits must be"), std::string::npos);
}

TEST(Options, PrintedConfigAndArgsReproduceTheRun) {
  const Options o = parse({"--lr", "3e-4", "--wbits", "4", "--no-tensorboard", "--milestones", "3,5", "--run",
                           "a b", "--dry-run"});
  for (const TempFile& file : {TempFile("e.ini", o.ini()), TempFile("e.json", o.args_json())}) {
    const Options again = parse({"--config", file.path});
    for (const OptionSpec& s : option_table()) {
      if (!(s.verbs & kTrain) || s.transient) continue;
      if (s.kind == OptionKind::text) {
        EXPECT_EQ(again.text(s.name), o.text(s.name)) << s.name;
      }
      if (s.kind == OptionKind::flag) {
        EXPECT_EQ(again.flag(s.name), o.flag(s.name)) << s.name;
      }
      if (s.kind == OptionKind::real) {
        EXPECT_EQ(again.real(s.name), o.real(s.name)) << s.name;
      }
      if (s.kind == OptionKind::reals) {
        EXPECT_EQ(again.reals(s.name), o.reals(s.name)) << s.name;
      }
      if (s.kind == OptionKind::integer) {
        EXPECT_EQ(again.integer(s.name), o.integer(s.name)) << s.name;
      }
    }
    EXPECT_FALSE(again.flag("dry-run"));
    EXPECT_EQ(again.ini(), o.ini());
  }
  EXPECT_THROW(parse({"--run", "a#b"}).ini(), Error);
}

TEST(Help, ListsEveryOptionOfAVerb) {
  for (const VerbSpec& v : verb_table()) {
    const std::string all = help_verb(v, true), some = help_verb(v, false);
    for (const OptionSpec& o : option_table()) {
      const std::string line = std::string(" --") + o.name;  // a whole name, not a longer one
      bool listed = false;
      for (const char after : {' ', ',', '\n'}) listed |= all.find(line + after) != std::string::npos;
      EXPECT_EQ(listed, (o.verbs & v.mask) != 0) << v.name << " " << o.name;
    }
    EXPECT_LE(some.size(), all.size() + 80);  // only the hint at the end is extra
    EXPECT_NE(help_overview().find(v.name), std::string::npos);
    EXPECT_NE(bash_completion().find(v.name), std::string::npos);
  }
  EXPECT_NE(help_verb(train_verb(), false).find("default 5e-4"), std::string::npos);
  EXPECT_EQ(help_verb(train_verb(), false).find("--lr-cycle-mul"), std::string::npos);
  EXPECT_NE(man_page().find(".SH train"), std::string::npos);
}

}  // namespace
}  // namespace lowbit
