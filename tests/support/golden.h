#pragma once
// Golden files: where they are, how they are read and compared, and the fill rule for what they do not store.
// One test body serves every device: tensors come on test_device(), modules are put there by placed(), and
// comparisons fetch what they need.

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "tensor/io/safetensors.h"

namespace lowbit::test {

/// Path of `rel` ("vvtq/lsq_act.safetensors") below $LOWBIT_GOLDEN_DIR, else tests/golden of the repository,
/// else
/// ../shared/golden beside the checkout; empty when it is in none of them. When the variable is set, only it
/// is asked.
std::string golden_path(const std::string& rel);
/// The same for $LOWBIT_DATA_DIR, else data/samples of the repository, else ../shared/data.
std::string data_path(const std::string& rel);

/// `LOWBIT_GOLDEN_OR_SKIP(path, "vvtq/adamw.safetensors");` declares `path` or skips the test visibly.
#define LOWBIT_GOLDEN_OR_SKIP(var, rel)                     \
  const std::string var = ::lowbit::test::golden_path(rel); \
  if (var.empty()) GTEST_SKIP() << "golden file not found: " << (rel)
#define LOWBIT_DATA_OR_SKIP(var, rel)                     \
  const std::string var = ::lowbit::test::data_path(rel); \
  if (var.empty()) GTEST_SKIP() << "data not found: " << (rel)

/// Where tests of published numbers compute: the CPU, or the device that $LOWBIT_TEST_DEVICE names ("cuda",
/// "cuda:1"). Throws where there is none.
Device test_device();
/// A module moved there with what its slots hold, before anybody asks for its state.
template <class M>
M& placed(M& m) {
  m.to(test_device());
  return m;
}

class GoldenFile {
 public:
  explicit GoldenFile(const std::string& path) : reader_(path) {}
  /// On test_device(); throws when missing.
  Tensor tensor(const std::string& name) const { return reader_.load(name).to(test_device()); }
  bool has(const std::string& name) const { return reader_.has(name); }
  std::vector<std::string> names() const;  ///< sorted
  std::vector<std::string> names_with_prefix(const std::string& prefix) const;
  bool has_meta(const std::string& key) const { return reader_.metadata().count(key) != 0; }
  std::string meta(const std::string& key, const std::string& fallback = "") const;
  nlohmann::json meta_json(const std::string& key) const;  ///< parsed; throws when absent
  /// Metadata "cases": either {"name": {settings}} or [{"case": "name", settings}]; in the order of the
  /// file's text.
  std::vector<std::pair<std::string, nlohmann::json>> cases() const;
  double rtol(double fallback = 1e-5) const { return number("rtol", fallback); }
  double atol(double fallback = 1e-6) const { return number("atol", fallback); }

 private:
  double number(const std::string& key, double fallback) const;
  SafetensorsReader reader_;
};

/// value[i] = float32(base + scale·u(name, i)), u in [-1, 1): FNV-1a of the name, splitmix64 of hash + i.
/// On test_device().
Tensor fill(const std::string& name, const Shape& shape, double base, double scale);
/// fill() with base and scale of a parameter or buffer by its checkpoint name and shape.
Tensor fill_parameter(const std::string& name, const Shape& shape);

/// Non-fatal check |actual − expected| <= atol + rtol·|expected| for every element (NaN equals NaN); shapes
/// must be equal up to extents of 1. Reports the worst element and the share of failures. True when all are
/// close. The tensors may be on any device.
bool expect_close(const Tensor& actual, const Tensor& expected, double rtol, double atol,
                  const std::string& what);
/// The same with the bound rtol·max|expected|, the rule for whole models.
bool expect_close_to_largest(const Tensor& actual, const Tensor& expected, double rtol,
                             const std::string& what);

}  // namespace lowbit::test
