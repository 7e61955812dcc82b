#pragma once
// Philox4x32-10 (Salmon et al., SC 2011): random numbers as a pure function of (seed, stream, counter), equal
// on CPU and CUDA and independent of thread, grid and worker counts.
//
//   RngKey k = context().generator.reserve(n);      // n draws, program order
//   float u = philox_uniform(k, i);                 // element i, [0, 1)
//   for (b…) { PhiloxBlock w = philox_block(k, b);  // elements 4b … 4b+3 at once: four times cheaper for
//   fills
//
// Element i reads word i mod 4 of the block with counter (offset + i/4, stream) under the key `seed`.

#include <cstdint>

#include "tensor/hd/half.h"
#include "tensor/hd/macros.h"
#include "tensor/hd/math.h"

namespace lowbit {

/// Names a sequence of draws. Reserved from a Generator in program order.
struct RngKey {
  uint64_t seed = 0, stream = 0, offset = 0;
  const uint64_t* device_offset = nullptr;  ///< added to offset when not null (graph replay)
};

struct PhiloxBlock {
  uint32_t w0, w1, w2, w3;
};

/// The bijection itself: 10 rounds on the counter c under key (k0, k1).
LOWBIT_HD PhiloxBlock philox4x32_10(PhiloxBlock c, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(0xD2511F53u) * c.w0, b = uint64_t(0xCD9E8D57u) * c.w2;
    c = {uint32_t(b >> 32) ^ c.w1 ^ k0, uint32_t(b), uint32_t(a >> 32) ^ c.w3 ^ k1, uint32_t(a)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

/// Words of the elements 4·block … 4·block + 3.
LOWBIT_HD PhiloxBlock philox_block(const RngKey& k, uint64_t block) {
  const uint64_t offset = k.offset + block + (k.device_offset ? *k.device_offset : 0);
  return philox4x32_10(
      {uint32_t(offset), uint32_t(offset >> 32), uint32_t(k.stream), uint32_t(k.stream >> 32)},
      uint32_t(k.seed), uint32_t(k.seed >> 32));
}

/// 32 random bits of element i.
LOWBIT_HD uint32_t philox_u32(const RngKey& k, uint64_t i) {
  const PhiloxBlock b = philox_block(k, i / 4);
  return (i & 2) ? ((i & 1) ? b.w3 : b.w2) : ((i & 1) ? b.w1 : b.w0);
}

/// Multiples of 2^-24 in [0, 1).
LOWBIT_HD float uniform_from_bits(uint32_t u) { return float(int32_t(u >> 8)) * 0x1p-24f; }
/// Multiples of 2^-24 in (0, 1]: safe for a logarithm.
LOWBIT_HD float uniform_open_from_bits(uint32_t u) { return float(int32_t(u >> 8) + 1) * 0x1p-24f; }
/// Integer in [0, n), n ≤ 2^32, as the high half of the 64-bit product u·n. Probabilities of two values
/// differ by at most 2^-32, i.e. relatively by n·2^-32 (3e-4 for a million values).
LOWBIT_HD uint32_t below_from_bits(uint32_t u, uint64_t n) { return uint32_t((uint64_t(u) * n) >> 32); }

LOWBIT_HD float philox_uniform(const RngKey& k, uint64_t i) { return uniform_from_bits(philox_u32(k, i)); }
LOWBIT_HD float philox_uniform_open(const RngKey& k, uint64_t i) {
  return uniform_open_from_bits(philox_u32(k, i));
}
LOWBIT_HD uint32_t philox_below(const RngKey& k, uint64_t i, uint64_t n) {
  return below_from_bits(philox_u32(k, i), n);
}

/// Standard normal by Box–Muller: elements 2j and 2j+1 are the cosine and the sine part of the same pair of
/// words.
LOWBIT_HD float normal_from_bits(uint32_t even, uint32_t odd, bool second) {
  const float r = math::sqrt(-2.0f * math::log(uniform_open_from_bits(even)));
  float sine, cosine;
  math::sincos_2pi(uniform_from_bits(odd), sine, cosine);
  return r * (second ? sine : cosine);
}
LOWBIT_HD float philox_normal(const RngKey& k, uint64_t i) {
  const PhiloxBlock b = philox_block(k, i / 4);
  return (i & 2) ? normal_from_bits(b.w2, b.w3, i & 1) : normal_from_bits(b.w0, b.w1, i & 1);
}

}  // namespace lowbit
