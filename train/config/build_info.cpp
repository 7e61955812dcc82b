#include "train/config/build_info.h"

#include <unistd.h>

#include <boost/version.hpp>
#include <fstream>

#include "lowbit_version.h"
#include "tensor/core/error.h"

namespace lowbit {

std::string build_version() { return LOWBIT_VERSION; }

std::string cpu_name() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);)
    if (line.starts_with("model name"))
      if (const size_t colon = line.find(": "); colon != line.npos) return line.substr(colon + 2);
  return "unknown";
}

std::string cpu_features() {
  std::string s;
#if defined(__x86_64__)
  const auto add = [&s](const char* name, bool present) {
    if (present) (s += s.empty() ? "" : " ") += name;
  };
  add("avx2", __builtin_cpu_supports("avx2"));
  add("fma", __builtin_cpu_supports("fma"));
  add("avx512f", __builtin_cpu_supports("avx512f"));
  add("avx512bw", __builtin_cpu_supports("avx512bw"));
  add("avx512vl", __builtin_cpu_supports("avx512vl"));
  add("avx512vnni", __builtin_cpu_supports("avx512vnni"));
#endif
  return s.empty() ? "portable" : s;
}

std::string host_name() {
  char name[256] = {};
  return gethostname(name, sizeof name - 1) == 0 ? name : "unknown";
}

std::vector<std::pair<std::string, std::string>> build_info() {
  return {{"version", build_version()},
          {"revision", LOWBIT_GIT_DESCRIBE},
          {"build", LOWBIT_BUILD},
          {"features", LOWBIT_FEATURES},
          {"boost", str_cat(BOOST_VERSION / 100000, ".", BOOST_VERSION / 100 % 1000)},
          {"cpu", cpu_name()},
          {"instruction sets", cpu_features()}};
}

}  // namespace lowbit
