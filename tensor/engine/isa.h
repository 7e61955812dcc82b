#pragma once
// Which instruction set the hand-written kernels use. Results never depend on it (docs/numerics.md).

#include <cstdint>

#include "tensor/core/device.h"

namespace lowbit {

/// avx512 needs AVX-512 F/BW/DQ/VL and VNNI, amx its integer tiles as well; machines with less run the avx2
/// kernels. Every level contains those before it.
enum class Isa : uint8_t { portable, avx2, avx512, amx };

const char* isa_name(Isa isa);
bool isa_supported(Isa isa);

/// The instruction set in use: the best supported one, or LOWBIT_ISA=portable|avx2|avx512|amx, or set_isa.
Isa current_isa();

/// For tests and benchmarks. Throws when this machine cannot run it.
void set_isa(Isa isa);

/// Whether products of codes have an instruction of their own on this device: VNNI, AMX, tensor cores. Then
/// they are several times as fast as float products, else (AVX2) about twice.
bool fast_integer_products(Device d);

}  // namespace lowbit
