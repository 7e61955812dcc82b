#include "tensor/core/draws.h"

#include "tensor/core/context.h"

namespace lowbit {
namespace {

thread_local const uint64_t* device_base = nullptr;

}  // namespace

RngKey reserve_draws(uint64_t count) {
  RngKey key = context().generator.reserve(count);
  key.device_offset = device_base;
  return key;
}

DeviceDraws::DeviceDraws(const uint64_t* base) { device_base = base; }
DeviceDraws::~DeviceDraws() { device_base = nullptr; }

}  // namespace lowbit
