// One binary for every x86-64 machine: hot loops are compiled for three instruction sets, the best is taken at run time.
//
// Write the loop once as an always-inline body and list its variants:
//
//   MRISR_INLINE void scale_body(float* x, Index n, float a) { ... }
//   MRISR_VARIANTS(scale, scale_body, (float* x, Index n, float a), (x, n, a))
//   ... scale(x, n, a);        // runs scale_base, scale_v3 (AVX2 + FMA) or scale_v4 (AVX-512)
#pragma once

namespace mrisr {

enum class Isa { base = 0, v3 = 1, v4 = 2 };

// What this machine runs, or less where the environment says MRISR_ISA=base|v3|v4 (tests use it). Never more.
Isa isa();
const char* isa_name();

}  // namespace mrisr

#define MRISR_INLINE static inline __attribute__((always_inline))

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define MRISR_TARGET_V3 __attribute__((target("avx2,fma,bmi,bmi2,f16c,lzcnt")))
#define MRISR_TARGET_V4 \
  __attribute__((       \
      target("avx2,fma,bmi,bmi2,f16c,lzcnt,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,prefer-vector-width=512")))
#define MRISR_VARIANTS(name, body, params, args)              \
  static void name##_base params { body args; }               \
  MRISR_TARGET_V3 static void name##_v3 params { body args; } \
  MRISR_TARGET_V4 static void name##_v4 params { body args; } \
  static inline void name params {                            \
    switch (::mrisr::isa()) {                                 \
      case ::mrisr::Isa::v4:                                  \
        return name##_v4 args;                                \
      case ::mrisr::Isa::v3:                                  \
        return name##_v3 args;                                \
      default:                                                \
        return name##_base args;                              \
    }                                                         \
  }
#else
#define MRISR_VARIANTS(name, body, params, args) \
  static inline void name params { body args; }
#endif
