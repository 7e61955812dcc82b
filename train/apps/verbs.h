#pragma once
// The verbs of the program. Each returns an exit code and throws Error for everything else.

#include <string>
#include <vector>

#include "train/config/options.h"

namespace lowbit {

int run_train(const Options& o, const std::vector<std::string>& command_line);
int run_eval(const Options& o, const std::vector<std::string>& command_line);
int run_inspect(const Options& o, const std::vector<std::string>& command_line);
int run_diff(const Options& o, const std::vector<std::string>& command_line);
int run_convert(const Options& o, const std::vector<std::string>& command_line);
int run_report(const Options& o, const std::vector<std::string>& command_line);
int run_labels(const Options& o, const std::vector<std::string>& command_line);
int run_repro(const Options& o, const std::vector<std::string>& command_line);
int run_sensitivity(const Options& o, const std::vector<std::string>& command_line);
int run_bench(const Options& o, const std::vector<std::string>& command_line);

struct TrainOutcome;
/// What run_train does, with its outcome, which a run that was finished before has too.
int train_model(const Options& o, const std::vector<std::string>& command_line, TrainOutcome& outcome);

}  // namespace lowbit
