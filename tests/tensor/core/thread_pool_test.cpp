#include "tensor/core/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "tensor/hd/row.h"

namespace lowbit {
namespace {

class ThreadPool : public testing::TestWithParam<int> {
 protected:
  void SetUp() override { set_threads(GetParam()); }
  void TearDown() override { set_threads(0); }
};

TEST_P(ThreadPool, EveryItemOnceForAnyLengthAndGrain) {
  for (int64_t n : {0, 1, 2, 3, 7, 100, 1001}) {
    for (int64_t grain : {0, 1, 3, 100, 5000}) {
      std::vector<std::atomic<int>> seen(static_cast<size_t>(n));
      std::atomic<int> short_parts{0};
      parallel_for(n, grain, [&](int64_t b, int64_t e) {
        ASSERT_LT(b, e);
        if (e - b < grain) ++short_parts;
        for (int64_t i = b; i < e; ++i) ++seen[size_t(i)];
      });
      for (auto& s : seen) ASSERT_EQ(s, 1);
      EXPECT_LE(short_parts, 1);  // the last one
    }
  }
}

/// Runs f once in each of n threads: an item ends when all have begun.
template <class F>
void in_every_thread(int n, F f) {
  std::atomic<int> begun{0};
  parallel_for(n, 1, [&](int64_t b, int64_t e) {
    ASSERT_EQ(e, b + 1);
    f(b);
    for (++begun; begun < n;) std::this_thread::yield();
  });
}

TEST_P(ThreadPool, UsesThatManyThreads) {
  std::vector<std::thread::id> ids(static_cast<size_t>(GetParam()));
  in_every_thread(GetParam(), [&](int64_t i) { ids[size_t(i)] = std::this_thread::get_id(); });
  EXPECT_EQ(std::set<std::thread::id>(ids.begin(), ids.end()).size(), size_t(GetParam()));
  EXPECT_EQ(threads(), GetParam());
}

TEST_P(ThreadPool, ExceptionsReachTheCallerAndThePoolGoesOn) {
  for (int64_t bad : {0, 50, 99}) {
    EXPECT_THROW(parallel_for(100, 1,
                              [&](int64_t b, int64_t e) {
                                if (b <= bad && bad < e) throw std::runtime_error("item");
                              }),
                 std::runtime_error);
    std::atomic<int64_t> sum{0};
    parallel_for(100, 1, [&](int64_t b, int64_t e) { sum += e - b; });
    EXPECT_EQ(sum, 100);
  }
}

TEST_P(ThreadPool, NestedCallsRunSerially) {
  std::atomic<int64_t> items{0};
  std::atomic<int> inner_parts{0};
  parallel_for(GetParam(), 1, [&](int64_t b, int64_t e) {
    const auto outer = std::this_thread::get_id();
    for (int64_t i = b; i < e; ++i) {
      parallel_for(1000, 1, [&](int64_t ib, int64_t ie) {
        ++inner_parts;
        items += ie - ib;
        if (GetParam() > 1) {
          EXPECT_EQ(std::this_thread::get_id(), outer);
        }
      });
    }
  });
  EXPECT_EQ(items, 1000 * GetParam());
  if (GetParam() > 1) {
    EXPECT_EQ(inner_parts, GetParam());
  }
}

TEST_P(ThreadPool, AThreadThatIsHeldUpLeavesItsShareToTheOthers) {
  if (GetParam() == 1) return;
  constexpr int64_t n = 64;
  std::atomic<int64_t> others{0}, held{0};
  parallel_for(n, 1, [&](int64_t b, int64_t e) {
    if (b == 0) {
      held = e;
      while (others < n - e) std::this_thread::yield();
    } else {
      others += e - b;
    }
  });
  EXPECT_EQ(others + held, n);
  EXPECT_LE(held, ceil_div(ceil_div(n, GetParam()), 2));  // at most half a share
}

TEST_P(ThreadPool, ManyShortRegions) {
  int64_t total = 0;
  for (int k = 0; k < 2000; ++k) {
    std::atomic<int64_t> sum{0};
    parallel_for(8, 1, [&](int64_t b, int64_t e) { sum += e - b; });
    total += sum;
  }
  EXPECT_EQ(total, 16000);
}

TEST_P(ThreadPool, SeveralCallingThreadsAreServed) {
  std::vector<std::thread> callers;
  std::atomic<int64_t> sum{0};
  for (int t = 0; t < 3; ++t)
    callers.emplace_back([&] {
      for (int k = 0; k < 200; ++k) parallel_for(50, 1, [&](int64_t b, int64_t e) { sum += e - b; });
    });
  for (auto& t : callers) t.join();
  EXPECT_EQ(sum, 3 * 200 * 50);
}

TEST_P(ThreadPool, DenormalsAreFlushedInEveryThread) {
  std::vector<float> result(size_t(GetParam()), 1.0f);
  in_every_thread(GetParam(), [&](int64_t i) {
    volatile float tiny = 0x1p-126f, half = 0.5f;
    result[size_t(i)] = tiny * half;
  });
  for (float r : result) EXPECT_EQ(r, 0.0f);
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPool, testing::Values(1, 2, 3, 4),
                         [](const auto& info) { return "Threads" + std::to_string(info.param); });

}  // namespace
}  // namespace lowbit
