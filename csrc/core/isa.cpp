#include "isa.h"

#include <cstdlib>
#include <cstring>

namespace mrisr {
namespace {

Isa detect() {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  const Isa best = v4 ? Isa::v4 : v3 ? Isa::v3 : Isa::base;
#else
  const Isa best = Isa::base;
#endif
  const char* setting = std::getenv("MRISR_ISA");
  if (setting == nullptr) return best;
  if (std::strcmp(setting, "base") == 0) return Isa::base;
  if (std::strcmp(setting, "v3") == 0 && best >= Isa::v3) return Isa::v3;
  return best;
}

}  // namespace

Isa isa() {
  static const Isa best_here = detect();
  return best_here;
}

const char* isa_name() {
  switch (isa()) {
    case Isa::v4:
      return "x86-64-v4 (AVX-512)";
    case Isa::v3:
      return "x86-64-v3 (AVX2, FMA)";
    default:
      return "baseline";
  }
}

}  // namespace mrisr
