#pragma once
// Damages a valid file in every cheap way and checks that its reader gives a result or an Error, nothing
// else.

#include <gtest/gtest.h>

#include <functional>
#include <random>
#include <string>

#include "tensor/core/error.h"

namespace lowbit::test {

/// True when `read` returned, false when it threw Error(io); any other outcome fails the test.
inline bool reads(const std::function<void(const std::string&)>& read, const std::string& bytes,
                  const std::string& what) {
  try {
    read(bytes);
    return true;
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::io) << what << ": " << e.what();
    EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos) << what << ": " << e.what();
  } catch (const std::exception& e) {
    ADD_FAILURE() << what << ": unexpected exception " << e.what();
  }
  return false;
}

/// Every truncation must fail; `mutations` random edits (byte set, bit flipped, run of bytes overwritten,
/// piece removed or repeated) may do either. `valid` must read.
inline void expect_robust(const std::function<void(const std::string&)>& read, const std::string& valid,
                          int mutations, size_t step = 1) {
  ASSERT_TRUE(reads(read, valid, "the valid file"));
  for (size_t n = 0; n < valid.size(); n += step)
    EXPECT_FALSE(reads(read, valid.substr(0, n), "truncated to " + std::to_string(n))) << "cut at " << n;
  std::mt19937 random(12345);
  auto below = [&](size_t n) { return n ? random() % n : 0; };
  for (int i = 0; i < mutations; ++i) {
    std::string bytes = valid;
    for (size_t edits = 1 + below(3); edits > 0 && !bytes.empty(); --edits) {
      const size_t at = below(bytes.size());
      switch (below(5)) {
        case 0:
          bytes[at] = char(random());
          break;
        case 1:
          bytes[at] = char(bytes[at] ^ (1 << below(8)));
          break;
        case 2:
          bytes.replace(at, std::min<size_t>(8, bytes.size() - at), std::string(8, below(2) ? '\xff' : '\0'));
          break;
        case 3:
          bytes.erase(at, below(16));
          break;
        default:
          bytes.insert(at, bytes.substr(below(bytes.size()), below(32)));
      }
    }
    reads(read, bytes, "mutation " + std::to_string(i));
  }
}

}  // namespace lowbit::test
