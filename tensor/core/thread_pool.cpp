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

#include "tensor/hd/row.h"

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

/// A call is cut into chunks. Every thread has its share of them, takes half of what is left of it at a time,
/// and then half of what another has left, from the back: cores of a shared machine differ by a third from
/// one moment to the next, and a share that was fixed beforehand waits for the slower one. A worker that
/// wakes late finds nothing left.
///
/// Threads wait up to 200 µs before they sleep: less, and they would sleep in every gap between two kernels;
/// more, and the pool would take time from a busy process beside it.
class Pool {
 public:
  explicit Pool(int n) : shares_(n) {
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
  int size() const { return int(shares_.size()); }

  void run(int64_t n, int64_t grain, void (*call)(void*, int64_t, int64_t), void* f) {
    // Nothing is left of the call before, so no thread reads these until it has taken a chunk of this one.
    call_ = call, f_ = f, n_ = n;
    chunk_ = std::max(grain, ceil_div(n, int64_t(kChunksPerThread) * size()));
    const auto chunks = uint32_t(ceil_div(n, chunk_));
    error_ = nullptr;
    unfinished_.store(chunks);
    for (uint32_t i = 0, p = uint32_t(size()); i < p; ++i)
      shares_[i].left.store(Share::pack(chunks * i / p, chunks * (i + 1) / p), std::memory_order_release);
    {
      std::lock_guard lock(mutex_);
      generation_.fetch_add(1);
    }
    wake_.notify_all();
    take_part(0);
    spin_until([&] { return unfinished_.load(std::memory_order_acquire) == 0; });
    if (unfinished_.load(std::memory_order_acquire) != 0) {
      std::unique_lock lock(mutex_);
      done_.wait(lock, [&] { return unfinished_.load() == 0; });
    }
    if (error_) std::rethrow_exception(error_);
  }

 private:
  static constexpr int kChunksPerThread = 16;

  /// The chunks [begin, end) that nobody has taken yet. Alone in its cache line.
  struct alignas(64) Share {
    std::atomic<uint64_t> left{0};

    static uint64_t pack(uint32_t begin, uint32_t end) { return uint64_t{begin} << 32 | end; }

    /// Half of what is left, from the front or the back; false when there is nothing.
    bool take(bool front, uint32_t& begin, uint32_t& end) {
      uint64_t seen = left.load(std::memory_order_acquire);
      for (;;) {
        const auto b = uint32_t(seen >> 32), e = uint32_t(seen);
        if (b >= e) return false;
        const uint32_t half = (e - b + 1) / 2;
        begin = front ? b : e - half, end = front ? b + half : e;
        if (left.compare_exchange_weak(seen, front ? pack(end, e) : pack(b, begin), std::memory_order_acq_rel,
                                       std::memory_order_acquire))
          return true;
      }
    }
  };

  /// Returns when p() is true, or after 200 µs. From 50 µs on whoever else wants the core gets it.
  template <class P>
  static void spin_until(P p) {
    using std::chrono::microseconds;
    const auto begin = std::chrono::steady_clock::now();
    for (std::chrono::steady_clock::duration t{}; !p() && t < microseconds(200);
         t = std::chrono::steady_clock::now() - begin) {
      if (t < microseconds(50))
        pause();
      else
        std::this_thread::yield();
    }
  }
  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#else
    std::this_thread::yield();
#endif
  }
  void take_part(int i) {
    inside_pool = true;
    for (int k = 0; k < size(); ++k) {
      Share& share = shares_[(i + k) % size()];
      for (uint32_t begin, end; share.take(k == 0, begin, end);) compute(begin, end);
    }
    inside_pool = false;
  }
  void compute(uint32_t begin, uint32_t end) {
    try {
      call_(f_, begin * chunk_, std::min(n_, end * chunk_));
    } catch (...) {
      std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
    if (unfinished_.fetch_sub(end - begin) == end - begin) {
      std::lock_guard lock(mutex_);
      done_.notify_one();
    }
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
      take_part(i);
    }
  }

  std::vector<Share> shares_;
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<uint32_t> unfinished_{0};
  std::atomic<bool> stop_ = false;
  void (*call_)(void*, int64_t, int64_t) = nullptr;
  void* f_ = nullptr;
  int64_t n_ = 0, chunk_ = 1;
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
  grain = std::max<int64_t>(grain, 1);
  if (threads() <= 1 || n / grain <= 1 || inside_pool || !pool_mutex.try_lock()) {
    call(f, 0, n);
    return;
  }
  std::lock_guard lock(pool_mutex, std::adopt_lock);
  if (!pool || pool->size() != threads()) {
    pool.reset();
    pool = std::make_unique<Pool>(threads());
  }
  pool->run(n, grain, call, f);
}

}  // namespace lowbit
