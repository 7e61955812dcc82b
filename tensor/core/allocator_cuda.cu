// Caching allocator, compute stream and transfers of each GPU.

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "tensor/core/backend.h"
#include "tensor/core/cuda_runtime.cuh"

static_assert(__cplusplus >= 202002L, "the CUDA compiler must run in C++20 mode");

namespace lowbit::cuda {
namespace {

/// 512-byte steps below 1 MiB, 2 MiB steps above.
size_t size_class(size_t bytes) {
  const size_t step = bytes < (size_t(1) << 20) ? 512 : size_t(2) << 20;
  return (bytes + step - 1) / step * step;
}

/// Makes a device current for a scope.
class DeviceScope {
 public:
  explicit DeviceScope(int index) {
    check(cudaGetDevice(&before_), "device");
    if (index != before_) check(cudaSetDevice(index), "device");
  }
  ~DeviceScope() { cudaSetDevice(before_); }

 private:
  int before_ = 0;
};

/// Blocks are reused in stream order: with the one compute stream of a device, release-then-reuse needs no
/// event. A block belongs for ever to the pool it was allocated in (0, or the pool of a graph capture).
class CudaAllocator final : public Allocator {
 public:
  explicit CudaAllocator(int index) : index_(index) {}

  void* allocate(size_t bytes, Stream) override {
    if (bytes == 0) return nullptr;
    const size_t size = size_class(bytes);
    std::lock_guard lock(mutex_);
    ++stats_.calls;
    auto& list = free_[{pool_, size}];
    void* p = nullptr;
    if (!list.empty()) {
      p = list.back();
      list.pop_back();
      stats_.cached -= size;
    } else {
      ++stats_.misses;
      p = fresh(size);
      pool_of_[p] = pool_;
    }
    stats_.live += size;
    stats_.peak = std::max(stats_.peak, stats_.live);
    return p;
  }
  void release(void* p, size_t bytes, Stream) noexcept override {
    if (!p) return;
    const size_t size = size_class(bytes);
    std::lock_guard lock(mutex_);
    stats_.live -= size;
    stats_.cached += size;
    free_[{pool_of_[p], size}].push_back(p);
  }
  void begin_pool(uint64_t pool_id) override {
    std::lock_guard lock(mutex_);
    pool_ = pool_id;
  }
  void end_pool(uint64_t) override {
    std::lock_guard lock(mutex_);
    pool_ = 0;
  }
  Stats stats() const override {
    std::lock_guard lock(mutex_);
    return stats_;
  }
  void reset_peak() override {
    std::lock_guard lock(mutex_);
    stats_.peak = stats_.live;
  }
  void trim() override {
    std::lock_guard lock(mutex_);
    trim_locked();
  }

 private:
  void* fresh(size_t size) {
    DeviceScope scope(index_);
    void* p = nullptr;
    if (cudaMalloc(&p, size) == cudaSuccess) return p;
    cudaGetLastError();
    trim_locked();
    if (cudaMalloc(&p, size) == cudaSuccess) return p;
    cudaGetLastError();
    fail(ErrorKind::run, "allocate",
         str_cat("out of GPU memory (got ", size, " bytes requested, ", stats_.live, " live on cuda:", index_,
                 ")"));
  }
  /// Gives the cached blocks outside of private pools back; a captured graph keeps the addresses of its pool.
  void trim_locked() {
    DeviceScope scope(index_);
    cudaDeviceSynchronize();  // work in flight may still use a released block
    for (auto& [key, list] : free_) {
      if (key.first != 0) continue;
      for (void* p : list) {
        cudaFree(p);
        pool_of_.erase(p);
        stats_.cached -= key.second;
      }
      list.clear();
    }
  }

  const int index_;
  mutable std::mutex mutex_;
  uint64_t pool_ = 0;
  std::map<std::pair<uint64_t, size_t>, std::vector<void*>> free_;
  std::unordered_map<void*, uint64_t> pool_of_;
  Stats stats_;
};

struct Gpu {
  explicit Gpu(int index) : allocator(index) {
    DeviceScope scope(index);
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  }
  CudaAllocator allocator;
  cudaStream_t stream = nullptr;
};

/// Created at first use and never destroyed: tensors with static lifetime release into it at exit.
Gpu& gpu(int index) {
  static std::mutex mutex;
  static auto& all = *new std::vector<std::unique_ptr<Gpu>>;
  std::lock_guard lock(mutex);
  if (index >= int(all.size())) {
    int count = 0;
    check(cudaGetDeviceCount(&count), "device");
    LOWBIT_CHECK(index < count, device, "device", "no such GPU (got cuda:", index, " of ", count, ")");
    all.resize(size_t(count));
  }
  auto& slot = all[size_t(index)];
  if (!slot) slot = std::make_unique<Gpu>(index);
  return *slot;
}

void transfer(void* dst, Device to, const void* src, Device from, size_t bytes) {
  const int index = to.is_cuda() ? to.index : from.index;
  DeviceScope scope(index);
  if (to.is_cuda() &&
      from.is_cuda()) {  // the source's pending work first, then the copy in order with the destination's
    check(cudaStreamSynchronize(gpu(from.index).stream), "to");
    check(cudaMemcpyPeerAsync(dst, to.index, src, from.index, bytes, gpu(to.index).stream), "to");
  } else {
    check(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, gpu(index).stream), "to");
  }
  check(cudaStreamSynchronize(gpu(index).stream), "to");
}

constexpr CudaBackend backend{[](int index) -> Allocator& { return gpu(index).allocator; },
                              [](Device d) {
                                return Stream{d, gpu(d.index).stream};
                              },
                              transfer};
[[maybe_unused]] const bool registered = (set_cuda_backend(&backend), true);

}  // namespace
}  // namespace lowbit::cuda
