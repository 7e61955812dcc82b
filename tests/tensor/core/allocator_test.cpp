#include "tensor/core/allocator.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "tensor/core/tensor.h"

namespace lowbit {
namespace {

TEST(Allocator, ReleasedBlocksAreReused) {
  Allocator& a = allocator({});
  a.trim();
  const auto before = a.stats();
  void* p = a.allocate(1000000, {});
  EXPECT_EQ(reinterpret_cast<uintptr_t>(p) % 64, 0u);
  a.release(p, 1000000, {});
  EXPECT_GE(a.stats().cached, 1000000u);
  void* q = a.allocate(1000000, {});
  EXPECT_EQ(q, p);
  EXPECT_EQ(a.stats().misses, before.misses + 1);
  EXPECT_EQ(a.stats().calls, before.calls + 2);
  a.release(q, 1000000, {});
  EXPECT_EQ(a.stats().live, before.live);
  a.trim();
  EXPECT_EQ(a.stats().cached, 0u);
}

TEST(Allocator, NothingIsNull) {
  EXPECT_EQ(allocator({}).allocate(0, {}), nullptr);
  allocator({}).release(nullptr, 0, {});
}

TEST(Allocator, PeakIsTheHighWaterMark) {
  Allocator& a = allocator({});
  a.reset_peak();
  const size_t live = a.stats().live;
  {
    const Tensor x = Tensor::zeros({1000}), y = Tensor::zeros({1000});
    EXPECT_GE(a.stats().live, live + 8000);
  }
  EXPECT_EQ(a.stats().live, live);
  EXPECT_GE(a.stats().peak, live + 8000);
  a.reset_peak();
  EXPECT_EQ(a.stats().peak, live);
}

TEST(Allocator, SlackIsAtMostAQuarter) {
  Allocator& a = allocator({});
  for (size_t bytes = 1; bytes < (size_t(1) << 24); bytes += bytes / 7 + 1) {
    const size_t live = a.stats().live;
    void* p = a.allocate(bytes, {});
    const size_t given = a.stats().live - live;
    EXPECT_GE(given, bytes);
    EXPECT_LE(given, std::max(bytes + 63, bytes + bytes / 4 + 1)) << bytes;
    a.release(p, bytes, {});
  }
}

TEST(Allocator, LiveBlocksNeverOverlapUnderThreads) {
  const auto work = [](unsigned seed) {
    std::mt19937 rng(seed);
    std::vector<std::pair<unsigned char*, size_t>> blocks;
    Allocator& a = allocator({});
    for (int step = 0; step < 4000; ++step) {
      if (blocks.size() < 20 || rng() % 2) {
        const size_t n = 1 + rng() % 5000;
        auto* p = static_cast<unsigned char*>(a.allocate(n, {}));
        std::memset(p, int(seed), n);
        blocks.emplace_back(p, n);
      } else {
        const size_t k = rng() % blocks.size();
        auto [p, n] = blocks[k];
        for (size_t i = 0; i < n; ++i) ASSERT_EQ(p[i], seed);
        a.release(p, n, {});
        blocks[k] = blocks.back();
        blocks.pop_back();
      }
    }
    for (auto [p, n] : blocks) a.release(p, n, {});
  };
  std::vector<std::thread> threads;
  for (unsigned s = 1; s <= 3; ++s) threads.emplace_back(work, s);
  for (auto& t : threads) t.join();
}

TEST(Allocator, ImpossibleRequestIsARunError) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "AddressSanitizer ends the program on such a request";
#endif
  try {
    allocator({}).allocate(size_t(1) << 60, {});
    FAIL() << "nothing thrown";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::run);
    EXPECT_TRUE(std::string(e.what()).starts_with("allocate: out of memory"));
  }
}

/// What is released in the reverse order leaves room for blocks of any other size.
TEST(Allocator, LargeBlocksJoinWhenTheyAreFree) {
  Allocator& a = allocator({});
  a.trim();
  const size_t mib = size_t(1) << 20;
  std::vector<void*> small;
  for (int i = 0; i < 8; ++i) small.push_back(a.allocate(mib, {}));
  void* const last = a.allocate(mib, {});
  const auto before = a.stats();
  for (void* p : small) a.release(p, mib, {});
  void* const large = a.allocate(8 * mib, {});
  EXPECT_EQ(large, small[0]);
  EXPECT_EQ(a.stats().misses, before.misses);
  EXPECT_EQ(a.stats().live, before.live);
  a.release(large, 8 * mib, {});
  a.release(last, mib, {});
}

TEST(Allocator, CheckFindsWritesBeyondABlock) {
  set_allocation_check(true);
  const size_t before = allocation_violations();
  {
    Tensor t = Tensor::empty({8});
    EXPECT_NE(t.data<float>()[3], t.data<float>()[3]) << "fresh memory reads as NaN";
    EXPECT_EQ(allocation_violations(), before);
    reinterpret_cast<volatile char*>(t.data<float>())[32] = 1;
    EXPECT_EQ(allocation_violations(), before + 1);
  }
  EXPECT_EQ(allocation_violations(), before + 1);
  set_allocation_check(false);
}

}  // namespace
}  // namespace lowbit
