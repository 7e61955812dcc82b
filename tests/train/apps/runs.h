#pragma once
// Comparing what two runs left behind, bit for bit.

#include <gtest/gtest.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "tests/train/apps/process.h"
#include "train/checkpoint/state.h"

namespace lowbit::test {

inline void expect_equal_tensors(const std::string& a, const std::string& b) {
  const Checkpoint x = load_checkpoint(a), y = load_checkpoint(b);
  EXPECT_EQ(x.tensors.size(), y.tensors.size());
  for (const auto& [name, t] : x.tensors) {
    const auto it = y.tensors.find(name);
    ASSERT_NE(it, y.tensors.end()) << name;
    ASSERT_EQ(t.str(), it->second.str()) << name;
    EXPECT_EQ(std::memcmp(t.view().data, it->second.view().data, t.bytes()), 0) << name << " differs";
  }
}

/// metrics.jsonl without what depends on time.
inline std::vector<nlohmann::json> events(const std::string& run) {
  std::vector<nlohmann::json> all;
  std::istringstream in(read_file(run + "/metrics.jsonl"));
  for (std::string line; std::getline(in, line);) {
    auto j = nlohmann::json::parse(line);
    for (const char* key : {"t", "img_per_s", "data_wait", "mem_mib", "peak_mib"}) j.erase(key);
    all.push_back(j);
  }
  return all;
}

/// Rows of summary.csv without the speed.
inline std::vector<Words> rows(const std::string& run) {
  std::vector<Words> all;
  std::istringstream in(read_file(run + "/summary.csv"));
  for (std::string line; std::getline(in, line);) {
    Words cells;
    std::istringstream cell(line);
    for (std::string c; std::getline(cell, c, ',');) cells.push_back(c);
    cells.resize(8);
    cells[6] = "";
    all.push_back(cells);
  }
  return all;
}

/// Weights, states, every event and every row.
inline void expect_equal_results(const std::string& expected, const std::string& run) {
  for (const char* file : {"last.safetensors", "last.state", "best.safetensors"}) {
    SCOPED_TRACE(file);
    expect_equal_tensors(expected + "/" + file, run + "/" + file);
  }
  const auto a = events(expected), b = events(run);
  ASSERT_EQ(b.size(), a.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_EQ(b[i], a[i]);
  EXPECT_EQ(rows(run), rows(expected));
}

}  // namespace lowbit::test
