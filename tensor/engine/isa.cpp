#include "tensor/engine/isa.h"

#include <atomic>
#include <cstdlib>
#include <string_view>
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "tensor/core/error.h"

namespace lowbit {

const char* isa_name(Isa isa) {
  constexpr const char* names[] = {"portable", "avx2", "avx512", "amx"};
  return names[int(isa)];
}

namespace {

#if defined(__x86_64__)
/// The tiles of AMX are state that Linux gives to a process that asks for it.
bool amx_usable() {
  static const bool usable = [] {
    constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kTile) && (d & kInt8) &&
           syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return usable;
}
#endif

}  // namespace

bool isa_supported(Isa isa) {
  if (isa == Isa::portable) return true;
#if defined(__x86_64__)
  if (isa == Isa::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::amx && !amx_usable()) return false;
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

namespace {

Isa initial_isa() {
  constexpr Isa best_first[] = {Isa::amx, Isa::avx512, Isa::avx2, Isa::portable};
  if (const char* s = std::getenv("LOWBIT_ISA")) {
    for (const Isa i : best_first)
      if (std::string_view(s) == isa_name(i)) {
        LOWBIT_CHECK(isa_supported(i), usage, "LOWBIT_ISA", "this machine cannot run ", s);
        return i;
      }
    fail(ErrorKind::usage, "LOWBIT_ISA", str_cat("must be portable, avx2, avx512 or amx (got ", s, ")"));
  }
  for (const Isa i : best_first)
    if (isa_supported(i)) return i;
  return Isa::portable;
}

std::atomic<Isa>& selected() {
  static std::atomic<Isa> isa{initial_isa()};
  return isa;
}

}  // namespace

Isa current_isa() { return selected().load(std::memory_order_relaxed); }

bool fast_integer_products(Device d) { return d.is_cuda() || current_isa() >= Isa::avx512; }

void set_isa(Isa isa) {
  LOWBIT_CHECK(isa_supported(isa), usage, "set_isa", "this machine cannot run ", isa_name(isa));
  selected() = isa;
}

}  // namespace lowbit
