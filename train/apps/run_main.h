#pragma once
// The frame of the program: picks the verb, parses its options, turns errors into one line and an exit code.

#include <functional>
#include <span>
#include <string>

#include "tensor/core/error.h"
#include "train/config/options.h"

namespace lowbit {

enum ExitCode : int {
  kExitSuccess = 0,
  kExitFailure = 1,
  kExitUsage = 2,
  kExitInput = 3,
  kExitNumeric = 4,
  // 6, kExitRankLost (train/dist/communicator.h): another rank died or hangs
  kExitStopped = 75  ///< stopped by a signal or a time limit after a clean checkpoint
};

struct VerbMain {
  const char* name;  ///< of verb_table()
  int (*run)(const Options& o, const std::vector<std::string>& command_line);
};

/// Handles help, --help, --version, --help-man, --help-completion and --print-config itself, sets threads and
/// the context's switches, then runs the verb. `models` is the text of `help models`.
int run_main(int argc, char** argv, std::span<const VerbMain> verbs,
             const std::function<std::string()>& models);

int exit_code(ErrorKind kind);

/// Runs f; an exception becomes "lowbit: <text>" on stderr and its exit code: usage 2, io 3, numeric 4,
/// RankFailure's own, everything else 1.
int exit_code_of(const std::function<int()>& f);

}  // namespace lowbit
