#include "tensor/core/device_graph.h"

#include <atomic>
#include <string>

#include "tensor/core/allocator.h"
#include "tensor/core/backend.h"
#include "tensor/core/error.h"

namespace lowbit {
namespace {

thread_local bool recording = false;
std::atomic<uint64_t> pools = 0;

}  // namespace

bool capturing() { return recording; }

DevicePool::DevicePool(Device d) : device_(d), id_(++pools) {}
DevicePool::~DevicePool() { allocator(device_).release_pool(id_); }
DevicePool::Scope::Scope(const DevicePool& p) : pool_(p) { allocator(p.device_).begin_pool(p.id_); }
DevicePool::Scope::~Scope() { allocator(pool_.device_).end_pool(pool_.id_); }

DeviceGraph::~DeviceGraph() {
  if (!graph_) return;
  const CudaBackend& backend = require_cuda_backend("graph");
  try {
    guard_wait(pool_.device());
  } catch (...) {  // whoever guards has said it already, and has seen to it that the graph ends
  }
  backend.synchronize(pool_.device());
  backend.destroy_graph(pool_.device(), graph_);
}

void DeviceGraph::capture(const std::function<void()>& work) {
  LOWBIT_ASSERT(!graph_ && !recording);
  const CudaBackend& backend = require_cuda_backend("graph");
  const DevicePool::Scope memory(pool_);
  std::string why;
  backend.begin_capture(pool_.device());
  recording = true;
  try {
    work();
  } catch (const Error& e) {
    why = e.what();
  } catch (...) {
    recording = false;
    backend.end_capture(pool_.device(), nodes_, why);
    throw;
  }
  recording = false;
  std::string spoiled;
  graph_ = backend.end_capture(pool_.device(), nodes_, spoiled);
  if (graph_ && !why.empty()) backend.destroy_graph(pool_.device(), graph_), graph_ = nullptr;
  LOWBIT_CHECK(graph_, capture, "graph", "the work cannot be recorded (", why.empty() ? spoiled : why, ")");
}

void DeviceGraph::launch() {
  LOWBIT_ASSERT(graph_);
  require_cuda_backend("graph").launch_graph(pool_.device(), graph_);
}

}  // namespace lowbit
