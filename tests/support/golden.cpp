#include "tests/support/golden.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>

#include "tensor/core/backend.h"

namespace lowbit::test {
namespace {

namespace fs = std::filesystem;

std::string find_below(const char* variable, const std::vector<std::string>& roots, const std::string& rel) {
  if (const char* dir = std::getenv(variable); dir && *dir) {
    const fs::path p = fs::path(dir) / rel;
    return fs::exists(p) ? p.string() : "";
  }
  for (const std::string& root : roots) {
    const fs::path p = fs::path(LOWBIT_SOURCE_DIR) / root / rel;
    if (fs::exists(p)) return p.lexically_normal().string();
  }
  return "";
}

Device device_named(const char* text) {
  const std::string name = text ? text : "";
  if (name.empty() || name == "cpu") return {};
  const std::string why = cuda_unusable();
  const int count = why.empty() ? gpu_count() : 0;
  for (int i = 0; i < count; ++i) {
    const Device d{Device::Kind::cuda, int8_t(i)};
    if (name == d.str() || (name == "cuda" && i == 0)) return d;
  }
  fail(ErrorKind::usage, "LOWBIT_TEST_DEVICE",
       str_cat("there is no ", name, " here (", why.empty() ? str_cat(count, " GPUs") : why, ")"));
}

Shape squeezed(const Shape& s) {
  Shape r;
  for (int64_t d : s)
    if (d != 1) r.append(d);
  return r;
}

std::vector<double> values(const Tensor& t) { return t.to(Device{}).cast(DType::f64).to_vector<double>(); }

/// bound(expected value) → largest allowed difference.
template <class Bound>
bool compare(const Tensor& actual, const Tensor& expected, const std::string& what, Bound bound) {
  if (!actual.defined() || !expected.defined() || !(squeezed(actual.shape()) == squeezed(expected.shape()))) {
    ADD_FAILURE() << what << ": shapes differ: " << actual.str() << " against " << expected.str();
    return false;
  }
  const std::vector<double> a = values(actual), e = values(expected);
  size_t bad = 0, worst = 0;
  double worst_ratio = -1;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] == e[i] || (std::isnan(a[i]) && std::isnan(e[i]))) continue;
    const double difference = std::fabs(a[i] - e[i]), limit = bound(e[i]);
    if (difference <= limit && std::isfinite(limit)) continue;
    ++bad;
    double ratio = limit > 0 ? difference / limit : INFINITY;
    if (std::isnan(ratio)) ratio = INFINITY;
    if (ratio > worst_ratio) worst_ratio = ratio, worst = i;
  }
  if (bad == 0) return true;
  std::ostringstream at;
  int64_t rest = int64_t(worst);
  std::vector<int64_t> index(size_t(expected.ndim()));
  for (int d = expected.ndim() - 1; d >= 0; --d)
    index[size_t(d)] = rest % expected.size(d), rest /= expected.size(d);
  for (int64_t i : index) at << (at.tellp() ? ", " : "") << i;
  ADD_FAILURE() << what << ": " << bad << " of " << a.size() << " elements differ; worst at [" << at.str()
                << "] of " << expected.str() << ": got " << a[worst] << ", expected " << e[worst]
                << ", difference " << std::fabs(a[worst] - e[worst]) << " = " << worst_ratio
                << " times the bound";
  return false;
}

}  // namespace

std::string golden_path(const std::string& rel) {
  return find_below("LOWBIT_GOLDEN_DIR", {"tests/golden", "../shared/golden"}, rel);
}
std::string data_path(const std::string& rel) {
  return find_below("LOWBIT_DATA_DIR", {"data/samples", "../shared/data"}, rel);
}

Device test_device() {
  static const Device device = device_named(std::getenv("LOWBIT_TEST_DEVICE"));
  return device;
}

std::vector<std::string> GoldenFile::names() const { return names_with_prefix(""); }

std::vector<std::string> GoldenFile::names_with_prefix(const std::string& prefix) const {
  std::vector<std::string> r;
  for (const auto& [name, entry] : reader_.entries())
    if (name.starts_with(prefix)) r.push_back(name);
  return r;
}

std::string GoldenFile::meta(const std::string& key, const std::string& fallback) const {
  const auto it = reader_.metadata().find(key);
  return it == reader_.metadata().end() ? fallback : it->second;
}

namespace {
/// Some files write Infinity, which is not JSON; 1e308 stands for it.
std::string json_text(std::string text) {
  constexpr std::string_view kInfinity = "Infinity";
  for (size_t at; (at = text.find(kInfinity)) != std::string::npos;)
    text.replace(at, kInfinity.size(), "1e308");
  return text;
}
}  // namespace

nlohmann::json GoldenFile::meta_json(const std::string& key) const {
  LOWBIT_CHECK(has_meta(key), io, "golden", "no metadata ", key);
  return nlohmann::json::parse(json_text(meta(key)));
}

std::vector<std::pair<std::string, nlohmann::json>> GoldenFile::cases() const {
  LOWBIT_CHECK(has_meta("cases"), io, "golden", "no metadata cases");
  const auto cases = nlohmann::ordered_json::parse(json_text(meta("cases")));
  std::vector<std::pair<std::string, nlohmann::json>> r;
  for (const auto& [key, value] : cases.items())
    r.emplace_back(cases.is_array() ? value.at("case").get<std::string>() : key,
                   nlohmann::json::parse(value.dump()));
  return r;
}

double GoldenFile::number(const std::string& key, double fallback) const {
  const auto it = reader_.metadata().find(key);
  return it == reader_.metadata().end() ? fallback : std::strtod(it->second.c_str(), nullptr);
}

Tensor fill(const std::string& name, const Shape& shape, double base, double scale) {
  uint64_t h = 0xcbf29ce484222325u;
  for (unsigned char c : name) h = (h ^ c) * 0x100000001b3u;
  Tensor t = Tensor::empty(shape);
  float* out = t.data<float>();
  for (int64_t i = 0, n = t.numel(); i < n; ++i) {
    uint64_t z = h + uint64_t(i) + 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    const double u = double(z >> 40) / 16777216.0 * 2 - 1;
    out[i] = float(base + scale * u);
  }
  return t.to(test_device());
}

Tensor fill_parameter(const std::string& name, const Shape& shape) {
  if (shape.ndim() >= 2) return fill(name, shape, 0, std::sqrt(3.0 / double(shape.numel() / shape[0])));
  const bool factor = name.find(".coefficient") != std::string::npos;  // the exception that the files name
  if (shape.ndim() == 1 && (factor || name.ends_with("weight") || name.ends_with("running_var")))
    return fill(name, shape, 1, 0.1);
  return fill(name, shape, 0, 0.1);
}

bool expect_close(const Tensor& actual, const Tensor& expected, double rtol, double atol,
                  const std::string& what) {
  return compare(actual, expected, what, [=](double e) { return atol + rtol * std::fabs(e); });
}

bool expect_close_to_largest(const Tensor& actual, const Tensor& expected, double rtol,
                             const std::string& what) {
  double largest = 0;
  if (expected.defined())
    for (double e : values(expected)) largest = std::fmax(largest, std::fabs(e));
  return compare(actual, expected, what, [=](double) { return rtol * largest; });
}

}  // namespace lowbit::test
