#include "train/config/device.h"

#include <charconv>

#include "tensor/core/backend.h"
#include "tensor/core/error.h"

namespace lowbit {
namespace {

/// N of "cuda:N"; 0 for "cuda"; -1 for other words.
int gpu_number(std::string_view word) {
  if (word == "cuda") return 0;
  if (!word.starts_with("cuda:")) return -1;
  word.remove_prefix(5);
  int8_t n = 0;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), n);
  return error == std::errc{} && end == word.data() + word.size() ? n : -1;
}

}  // namespace

Device run_device(const Options& o) {
  const std::string& word = o.text("device");
  if (word == "cpu") return {};
  const int n = word == "auto" ? 0 : gpu_number(word);
  LOWBIT_CHECK(n >= 0, usage, o.verb().name, "--device takes cpu, cuda, cuda:N or auto (got '", word, "')");
  const std::string why = cuda_unusable();
  if (word == "auto" && !why.empty()) return {};
  LOWBIT_CHECK(why.empty(), usage, o.verb().name, "--device ", word, ": ", why);
  const int count = gpu_count();
  LOWBIT_CHECK(n < count, usage, o.verb().name, "--device ", word, ": there are ", count, " GPUs");
  return {Device::Kind::cuda, int8_t(n)};
}

std::string devices_line() {
  const std::string why = cuda_unusable();
  return why.empty() ? str_cat("cpu; cuda (", gpu_count(), ")") : "cpu; not cuda: " + why;
}

}  // namespace lowbit
