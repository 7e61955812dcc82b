#pragma once
#include <cstdint>

#include "tensor/core/device.h"

namespace lowbit {

/// Owns bytes; shared by views.
class Storage {
 public:
  Storage(size_t bytes, Device d);
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
};

}  // namespace lowbit
