#pragma once
// What this program was built from and runs on; for --version and manifest.json.

#include <string>
#include <utility>
#include <vector>

namespace lowbit {

std::string build_version();  ///< "0.1.0"
std::string cpu_name();       ///< "Intel(R) Xeon(R) …", or "unknown"
/// Instruction sets of this machine that kernels are chosen by, e.g. "avx2 avx512f avx512vnni".
std::string cpu_features();
std::string host_name();
/// Pairs of what and value: version, revision, compiler and flags, instruction sets, optional features.
std::vector<std::pair<std::string, std::string>> build_info();

}  // namespace lowbit
