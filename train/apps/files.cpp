// The verbs on weight files: inspect, diff, convert.

#include <cstdio>
#include <filesystem>
#include <sstream>

#include "train/apps/run_main.h"
#include "train/apps/verbs.h"
#include "train/checkpoint/tools.h"

namespace lowbit {
namespace {

void print_filtered(const std::string& text, const std::string& filter) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);)
    if (filter.empty() || line.find(filter) != std::string::npos) std::printf("%s\n", line.c_str());
}

/// A run folder stands for its newest weights.
std::string weights_path(const std::string& path) {
  return std::filesystem::is_directory(path) ? path + "/last.safetensors" : path;
}

}  // namespace

int run_inspect(const Options& o, const std::vector<std::string>&) {
  InspectOptions i;
  i.values = o.flag("verbose");
  print_filtered(inspect_file(weights_path(o.positional()[0]), i), o.text("filter"));
  return kExitSuccess;
}

int run_diff(const Options& o, const std::vector<std::string>&) {
  const DiffReport r = diff_files(weights_path(o.positional()[0]), weights_path(o.positional()[1]));
  print_filtered(r.text, o.text("filter"));
  return r.equal ? kExitSuccess : kExitFailure;
}

int run_convert(const Options& o, const std::vector<std::string>&) {
  ConvertOptions c;
  const std::string& type = o.text("dtype");
  if (type != "keep") c.dtype = type == "f32" ? DType::f32 : type == "f16" ? DType::f16 : DType::bf16;
  std::printf("%s\n", convert_file(weights_path(o.positional()[0]), o.positional()[1], c).c_str());
  return kExitSuccess;
}

}  // namespace lowbit
