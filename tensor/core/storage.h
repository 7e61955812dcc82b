#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

#include "tensor/core/device.h"

namespace lowbit {

/// Owns bytes; shared by views.
class Storage {
 public:
  Storage(size_t bytes, Device d);
  /// Part of another storage with a version of its own: a parameter inside an arena.
  Storage(std::shared_ptr<Storage> whole, size_t offset, size_t bytes);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;
  void* data() const { return ptr_; }
  size_t bytes() const { return bytes_; }
  Device device() const { return device_; }
  uint32_t version = 0;  ///< bumped by every in-place write

 private:
  void* ptr_ = nullptr;
  size_t bytes_ = 0;
  Device device_;
  std::shared_ptr<Storage> whole_;  // null: this one owns its bytes
};

}  // namespace lowbit
