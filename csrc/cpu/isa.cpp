#include "isa.h"

#include <atomic>
#include <cstring>

#ifdef __x86_64__
#include <cpuid.h>
#endif

namespace fastib {

#ifdef __x86_64__
// Clang's __builtin_cpu_supports does not know it, before version 15.
static bool supports_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

Isa best_isa() {
#ifdef __x86_64__
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && supports_f16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return avx512 ? Isa::avx512 : avx2 ? Isa::avx2 : Isa::baseline;
#else
  return Isa::baseline;
#endif
}

namespace {
std::atomic<Isa>& current() {
  static std::atomic<Isa> isa{best_isa()};
  return isa;
}
}  // namespace

Isa isa() { return current().load(std::memory_order_relaxed); }

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512: return "avx512";
    case Isa::avx2: return "avx2";
    default: return "baseline";
  }
}

bool use_isa(const char* name) {
  for (int i = 0; i <= int(best_isa()); ++i) {
    if (std::strcmp(name, isa_name(Isa(i))) == 0) {
      current().store(Isa(i), std::memory_order_relaxed);
      return true;
    }
  }
  return false;
}

}  // namespace fastib
