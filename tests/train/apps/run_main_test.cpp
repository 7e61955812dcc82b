#include "train/apps/run_main.h"

#include <gtest/gtest.h>

#include "tensor/core/error.h"

namespace lowbit {
namespace {

Options last_options;
std::vector<std::string> last_command_line;

int record(const Options& o, const std::vector<std::string>& command_line) {
  last_options = o, last_command_line = command_line;
  return kExitStopped;
}

struct Outcome {
  int code;
  std::string out, err;
};

Outcome run(std::vector<std::string> words) {
  words.insert(words.begin(), "lowbit");
  std::vector<char*> argv;
  for (auto& w : words) argv.push_back(w.data());
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  const VerbMain verbs[] = {{"train", record}};
  const int code = run_main(int(argv.size()), argv.data(), verbs, [] { return std::string("a model\n"); });
  const std::string out = testing::internal::GetCapturedStdout();
  return {code, out, testing::internal::GetCapturedStderr()};
}

TEST(RunMain, RunsTheVerbAndReturnsItsCode) {
  const Outcome r = run({"train", "--lr", "0.5"});
  EXPECT_EQ(r.code, 75);
  EXPECT_EQ(last_options.real("lr"), 0.5);
  EXPECT_EQ(last_command_line.size(), 4u);
}

TEST(RunMain, TextsGoToStdout) {
  EXPECT_NE(run({"help"}).out.find("Usage: lowbit VERB"), std::string::npos);
  EXPECT_EQ(run({"--help"}).out, run({"help"}).out);
  EXPECT_EQ(run({"help", "train"}).out, run({"train", "--help"}).out);
  EXPECT_EQ(run({"train", "-h"}).out, run({"train", "--help"}).out);
  EXPECT_EQ(run({"help", "train", "--help-all"}).out, run({"train", "--help-all"}).out);
  EXPECT_EQ(run({"help", "models"}).out, "a model\n");
  EXPECT_EQ(run({"--version"}).out.substr(0, 7), "lowbit ");
  EXPECT_NE(run({"train", "--print-config", "--wbits=4"}).out.find("\nwbits = 4\n"), std::string::npos);
  EXPECT_EQ(run({"train", "--help"}).code, 0);
}

TEST(RunMain, MistakesAreOneLineAndCodeTwo) {
  for (const auto& [words, text] : std::vector<std::pair<std::vector<std::string>, std::string>>{
           {{"train", "--wbits", "9"},
            "lowbit: train: --wbits must be between 1 and 8 (got 9); 32 means float\n"},
           {{"train", "--wbit", "4"}, "lowbit: train: unknown option '--wbit'; did you mean --wbits?\n"},
           {{"trian"}, "lowbit: usage: unknown verb 'trian'; did you mean 'train'?\n"},
           {{"xyzzy"}, "lowbit: usage: unknown verb 'xyzzy'; see 'lowbit help'\n"},
           {{}, "lowbit: usage: lowbit VERB [options]; see 'lowbit help'\n"}}) {
    const Outcome r = run(words);
    EXPECT_EQ(r.code, 2);
    EXPECT_EQ(r.err, text);
    EXPECT_EQ(r.out, "");
  }
}

TEST(RunMain, KindsOfErrorsHaveTheirCodes) {
  const auto code = [](ErrorKind kind) {
    testing::internal::CaptureStderr();
    const int c = exit_code_of([kind]() -> int { fail(kind, "op", "text"); });
    EXPECT_EQ(testing::internal::GetCapturedStderr(), "lowbit: op: text\n");
    return c;
  };
  EXPECT_EQ(code(ErrorKind::usage), 2);
  EXPECT_EQ(code(ErrorKind::io), 3);
  EXPECT_EQ(code(ErrorKind::numeric), 4);
  for (ErrorKind k : {ErrorKind::shape, ErrorKind::run, ErrorKind::internal, ErrorKind::value})
    EXPECT_EQ(code(k), 1);
  EXPECT_EQ(exit_code_of([] { return 0; }), 0);
  testing::internal::CaptureStderr();
  EXPECT_EQ(exit_code_of([]() -> int { throw std::bad_alloc(); }), 1);
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "lowbit: out of memory\n");
}

}  // namespace
}  // namespace lowbit
