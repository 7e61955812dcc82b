#include "train/report/report.h"

#include <cstdio>
#include <filesystem>

#include "train/apps/run_main.h"
#include "train/apps/verbs.h"

namespace lowbit {

int run_report(const Options& o, const std::vector<std::string>&) {
  const std::vector<std::string>& entries = o.positional();
  std::string file = o.text("file");
  if (entries.size() == 1 && std::filesystem::is_directory(entries[0]) && file.empty()) {
    write_report(entries[0]);
    file = entries[0] + "/report.html";
  } else {
    if (file.empty()) file = "report.html";
    std::printf("%s", write_comparison(entries, file).c_str());
  }
  std::printf("%s\n", file.c_str());
  return kExitSuccess;
}

}  // namespace lowbit
