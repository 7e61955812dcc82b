// Caching allocator, compute stream and transfers of each GPU.

#include <algorithm>
#include <cstring>
#include <deque>
#include <memory>

#include "tensor/core/backend.h"
#include "tensor/core/caching_allocator.h"
#include "tensor/core/cuda_runtime.cuh"
#include "tensor/core/index_fault.cuh"

static_assert(__cplusplus >= 202002L, "the CUDA compiler must run in C++20 mode");

namespace lowbit::cuda {
namespace {

class CudaAllocator final : public CachingAllocator {
 public:
  explicit CudaAllocator(int index) : index_(index) {}

 private:
  size_t size_class(size_t bytes) const override {  // 512-byte steps below 1 MiB, 2 MiB steps above
    const size_t step = bytes < (size_t(1) << 20) ? 512 : size_t(2) << 20;
    return (bytes + step - 1) / step * step;
  }
  bool keeps_owners() const override { return true; }
  void* fresh(size_t size) override {
    DeviceScope scope(index_);
    void* p = nullptr;
    if (cudaMalloc(&p, size) == cudaSuccess) return p;
    cudaGetLastError();
    return nullptr;
  }
  void give_back(std::span<void* const> blocks) noexcept override {
    if (blocks.empty()) return;
    DeviceScope scope(index_);
    cudaDeviceSynchronize();  // work in flight may still use a released block
    for (void* p : blocks) cudaFree(p);
  }

  const int index_;
};

/// Pinned memory through which host data reach a device without anybody waiting: a piece is free again when
/// the copy out of it has run.
class Staging {
 public:
  void upload(void* dst, const void* src, size_t bytes, cudaStream_t stream) {
    std::lock_guard lock(mutex_);
    Piece& p = piece(bytes);
    std::memcpy(p.memory, src, bytes);
    check(cudaMemcpyAsync(dst, p.memory, bytes, cudaMemcpyHostToDevice, stream), "upload");
    check(cudaEventRecord(p.copied, stream), "upload");
  }

 private:
  struct Piece {
    void* memory;
    size_t bytes;
    cudaEvent_t copied;
  };
  static constexpr size_t kSmallest = size_t(64) << 10, kMost = size_t(2) << 30;  ///< of all pieces together

  Piece& piece(size_t bytes) {
    const auto fits = [&](const Piece& p) { return p.bytes >= bytes && p.bytes / 4 <= bytes + kSmallest; };
    Piece* busy = nullptr;
    for (Piece& p : pieces_) {
      if (!fits(p)) continue;
      if (cudaEventQuery(p.copied) == cudaSuccess) return p;
      cudaGetLastError();  // not ready
      if (!busy) busy = &p;
    }
    if (busy && total_ + bytes > kMost) {  // the host is far ahead
      check(cudaEventSynchronize(busy->copied), "upload");
      return *busy;
    }
    Piece p{nullptr, std::max(bytes, kSmallest), nullptr};
    check(cudaMallocHost(&p.memory, p.bytes), "upload");
    check(cudaEventCreateWithFlags(&p.copied, cudaEventDisableTiming), "upload");
    total_ += p.bytes;
    return pieces_.emplace_back(p);
  }
  std::mutex mutex_;
  std::deque<Piece> pieces_;
  size_t total_ = 0;
};

struct Gpu {
  explicit Gpu(int index) : allocator(index) {
    DeviceScope scope(index);
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
    void* p = nullptr;
    check(cudaMallocHost(&p, sizeof(IndexFault)), "fault");
    fault = new (p) IndexFault{};
  }
  CudaAllocator allocator;
  Staging staging;
  cudaStream_t stream = nullptr;
  IndexFault* fault = nullptr;
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

/// The stream has been waited for.
void check_indices(Gpu& g) {
  volatile unsigned& count = g.fault->count;
  if (count == 0) return;
  const IndexFault f = *g.fault;
  count = 0;
  fail(ErrorKind::value, f.op,
       str_cat(f.what, "s must be in [0, ", f.end, ") (got ", f.what, " ", f.index, " at ", f.where, " ",
               f.place, ", found on the device)"));
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
  if (!to.is_cuda()) check_indices(gpu(index));
}

int device_count(std::string& why) {
  int count = 0, driver = 0;
  const cudaError_t e = cudaGetDeviceCount(&count);
  if (e == cudaSuccess && count > 0) return count;
  cudaGetLastError();
  const bool none = cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0;
  why = none ? "no NVIDIA driver" : e == cudaSuccess ? "the driver shows no GPU" : cudaGetErrorString(e);
  return 0;
}

void synchronize(Device d) {
  DeviceScope scope(d.index);
  check(cudaStreamSynchronize(gpu(d.index).stream), "synchronize");
}

void upload(void* dst, Device to, const void* src, size_t bytes) {
  DeviceScope scope(to.index);
  gpu(to.index).staging.upload(dst, src, bytes, gpu(to.index).stream);
}

void begin_capture(Device d) {
  DeviceScope scope(d.index);
  // Of this thread only: others may allocate, the loader's say.
  check(cudaStreamBeginCapture(gpu(d.index).stream, cudaStreamCaptureModeThreadLocal), "graph");
}

void* end_capture(Device d, int64_t& nodes, std::string& why) {
  DeviceScope scope(d.index);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  size_t count = 0;
  cudaError_t e = cudaStreamEndCapture(gpu(d.index).stream, &graph);
  if (e == cudaSuccess) e = cudaGraphGetNodes(graph, nullptr, &count);
  if (e == cudaSuccess) e = cudaGraphInstantiate(&executable, graph, 0);
  if (e != cudaSuccess) why = cudaGetErrorString(e);
  cudaGetLastError();
  if (graph) cudaGraphDestroy(graph);
  nodes = int64_t(count);
  return executable;
}

void launch_graph(Device d, void* graph) {
  DeviceScope scope(d.index);
  check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), gpu(d.index).stream), "graph");
}

void destroy_graph(Device d, void* graph) noexcept {
  DeviceScope scope(d.index);
  cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph));
}

constexpr CudaBackend backend{device_count,
                              [](int index) -> Allocator& { return gpu(index).allocator; },
                              [](Device d) {
                                return Stream{d, gpu(d.index).stream};
                              },
                              transfer,
                              synchronize,
                              upload,
                              begin_capture,
                              end_capture,
                              launch_graph,
                              destroy_graph,
                              [] { return launched.load(); }};
[[maybe_unused]] const bool registered = (set_cuda_backend(&backend), true);

}  // namespace

IndexFault* index_fault(Device d) { return gpu(d.index).fault; }

}  // namespace lowbit::cuda
