#pragma once
// Work of a device that is recorded once and then started as a whole: one launch in place of thousands. What
// is recorded are kernels with the addresses and numbers they were given, so whatever changes from one launch
// to the next must be read from device memory.

#include <cstdint>
#include <functional>

#include "tensor/core/device.h"

namespace lowbit {

/// True inside DeviceGraph::capture() on this thread: work is recorded, nothing runs, and nobody can read or
/// write what lies on the device. Tensor::to and the allocators throw Error(capture) then.
bool capturing();

/// Memory of a graph: while a Scope lives, what is allocated on the device comes from a pool of its own and
/// what is released goes back to where it came from, so that the addresses in a graph belong to it for as
/// long as the pool lives. Several graphs may use one pool when no two of them run at the same time and none
/// reads what another has left there.
class DevicePool {
 public:
  explicit DevicePool(Device d);
  ~DevicePool();  ///< the memory becomes ordinary cached memory
  DevicePool(const DevicePool&) = delete;
  class Scope {
   public:
    explicit Scope(const DevicePool& p);
    ~Scope();
    Scope(const Scope&) = delete;

   private:
    const DevicePool& pool_;
  };
  Device device() const { return device_; }

 private:
  Device device_;
  uint64_t id_;
};

class DeviceGraph {
 public:
  /// `pool` must outlive the graph.
  explicit DeviceGraph(const DevicePool& pool) : pool_(pool) {}
  ~DeviceGraph();
  DeviceGraph(const DeviceGraph&) = delete;
  /// Records what `work` gives the device, in place of doing it. All memory that it needs must be free in the
  /// pool: run the same work under a Scope before, twice if it replaces tensors that live longer than it.
  /// Errors  capture: `work` waits for the device, reads or writes its memory, or needs more than is there;
  ///         nothing has run then
  void capture(const std::function<void()>& work);
  void launch();
  int64_t nodes() const { return nodes_; }  ///< kernels, copies and fills

 private:
  const DevicePool& pool_;
  void* graph_ = nullptr;
  int64_t nodes_ = 0;
};

}  // namespace lowbit
