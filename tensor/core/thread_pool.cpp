#include "tensor/core/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lowbit {

void enable_flush_to_zero() {
#if defined(__x86_64__)
  _mm_setcsr(_mm_getcsr() | 0x8040);  // FTZ | DAZ
#elif defined(__aarch64__)
  uint64_t fpcr;
  asm volatile("mrs %0, fpcr" : "=r"(fpcr));
  asm volatile("msr fpcr, %0" ::"r"(fpcr | (1ull << 24)));
#endif
}

namespace {

int default_threads() {
  if (const char* s = std::getenv("LOWBIT_THREADS")) {
    const int n = std::atoi(s);
    if (n > 0) return n;
  }
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

thread_local bool inside_pool = false;

/// Workers wait up to 50 µs by spinning, then sleep: a spinning pool collapses beside a busy process.
class Pool {
 public:
  explicit Pool(int n) {
    for (int i = 1; i < n; ++i) workers_.emplace_back([this, i] { work(i); });
  }
  ~Pool() {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
      generation_.fetch_add(1);
    }
    wake_.notify_all();
    for (auto& t : workers_) t.join();
  }
  int size() const { return int(workers_.size()) + 1; }

  void run(int64_t n, int parts, void (*call)(void*, int64_t, int64_t), void* f) {
    call_ = call, f_ = f, n_ = n, parts_ = parts;
    error_ = nullptr;
    pending_.store(int(workers_.size()));
    {
      std::lock_guard lock(mutex_);
      generation_.fetch_add(1);
    }
    wake_.notify_all();
    part(0);
    spin_until([&] { return pending_.load(std::memory_order_acquire) == 0; });
    if (pending_.load(std::memory_order_acquire) != 0) {
      std::unique_lock lock(mutex_);
      done_.wait(lock, [&] { return pending_.load() == 0; });
    }
    if (error_) std::rethrow_exception(error_);
  }

 private:
  template <class P>
  static void spin_until(P p) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(50);
    while (!p() && std::chrono::steady_clock::now() < end)
#if defined(__x86_64__)
      _mm_pause();
#else
      std::this_thread::yield();
#endif
  }
  void part(int i) {
    if (i >= parts_) return;
    const int64_t b = n_ * i / parts_, e = n_ * (i + 1) / parts_;
    inside_pool = true;
    try {
      if (b < e) call_(f_, b, e);
    } catch (...) {
      std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
    inside_pool = false;
  }
  void work(int i) {
    enable_flush_to_zero();
    uint64_t seen = 0;
    for (;;) {
      spin_until([&] { return generation_.load(std::memory_order_acquire) != seen; });
      if (generation_.load(std::memory_order_acquire) == seen) {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return generation_.load() != seen; });
      }
      seen = generation_.load(std::memory_order_acquire);
      if (stop_) return;
      part(i);
      if (pending_.fetch_sub(1) == 1) {
        std::lock_guard lock(mutex_);
        done_.notify_one();
      }
    }
  }

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> pending_{0};
  bool stop_ = false;
  void (*call_)(void*, int64_t, int64_t) = nullptr;
  void* f_ = nullptr;
  int64_t n_ = 0;
  int parts_ = 1;
  std::exception_ptr error_;
};

std::mutex pool_mutex;  // held while a parallel region runs: a second calling thread runs serially
std::unique_ptr<Pool> pool;
std::atomic<int> wanted{0};

// Runs at load time, before main: the main thread computes too.
[[maybe_unused]] const bool main_thread_flushes = (enable_flush_to_zero(), true);

}  // namespace

void set_threads(int n) { wanted = std::max(0, n); }

int threads() {
  static const int fallback = default_threads();
  const int n = wanted;
  return n > 0 ? n : fallback;
}

void detail::parallel_run(int64_t n, int64_t grain, void (*call)(void*, int64_t, int64_t), void* f) {
  if (n <= 0) return;
  const int parts = int(std::min<int64_t>(threads(), n / std::max<int64_t>(grain, 1)));
  if (parts <= 1 || inside_pool || !pool_mutex.try_lock()) {
    call(f, 0, n);
    return;
  }
  std::lock_guard lock(pool_mutex, std::adopt_lock);
  if (!pool || pool->size() != threads()) {
    pool.reset();
    pool = std::make_unique<Pool>(threads());
  }
  pool->run(n, parts, call, f);
}

}  // namespace lowbit
