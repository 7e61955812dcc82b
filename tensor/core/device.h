#pragma once
#include <cstdint>
#include <string>

namespace lowbit {

struct Device {
  enum class Kind : uint8_t { cpu, cuda } kind = Kind::cpu;
  int8_t index = 0;
  bool operator==(const Device&) const = default;
  bool is_cuda() const { return kind == Kind::cuda; }
  std::string str() const { return is_cuda() ? "cuda:" + std::to_string(index) : "cpu"; }
};

struct Stream {
  Device device;
  void* handle = nullptr;  ///< cudaStream_t; null on the CPU
};

}  // namespace lowbit
