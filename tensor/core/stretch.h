#pragma once
// One long stretch of addresses from which large blocks are cut, the lowest that fit, and in which free
// neighbours become one. A training step releases what it allocated nearly in the reverse order, so its
// blocks lie close together at whatever sizes they have, where classes of sizes would each keep their own
// largest need (docs/performance.md). Internal to tensor/core.

#include <cstddef>
#include <map>

namespace lowbit {

class Stretch {
 public:
  /// Only addresses: memory is taken by the first touch. Without an operating system that gives them, every
  /// take() is null.
  Stretch();
  Stretch(const Stretch&) = delete;
  void* take(size_t bytes);            ///< 64-byte aligned; null when nothing fits
  bool give(void* p);                  ///< false: not from here
  void trim();                         ///< the memory of free addresses goes back to the system
  size_t top() const { return top_; }  ///< bytes below the highest address taken since trim()
  size_t used() const { return bytes_; }

 private:
  char* base_ = nullptr;
  size_t top_ = 0, bytes_ = 0;
  std::map<size_t, size_t> free_, used_;  ///< offset → bytes
};

}  // namespace lowbit
