// SiLU and its slope, written so that loops over them vectorise: no branch, no call, NaN in NaN out.
#pragma once

#include <cstdint>
#include <cstring>

#include "isa.h"

namespace mrisr {

enum class Act { none = 0, silu = 1 };

// exp(-z) to 2e-7, for a z that is no NaN: 2^n of the nearest n, and a polynomial for the rest. What comes out for a NaN is
// some number; the functions below multiply by z, which is one.
MRISR_INLINE float exp_minus(float z) {
  float t = z > 87.0f ? 87.0f : z;
  t = t < -87.0f ? -87.0f : t;
  const float shifted = t * -1.44269502162933349609375f + 12582912.0f;  // adding 1.5 * 2^23 rounds to an integer
  const float n = shifted - 12582912.0f;
  const float f = (t * -1.44269502162933349609375f - n) - t * 1.925963033500e-8f;  // log2(e) in two parts
  float p = 1.3264726899e-03f;  // 2^f on [-0.5, 0.5], least relative error
  p = p * f + 9.6715126606e-03f;
  p = p * f + 5.5507337442e-02f;
  p = p * f + 2.4022242085e-01f;
  p = p * f + 6.9314697760e-01f;
  p = p * f + 1.0f;
  std::uint32_t bits, exponent;
  std::memcpy(&bits, &p, 4);
  std::memcpy(&exponent, &shifted, 4);
  bits += exponent << 23;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

MRISR_INLINE float silu(float z) { return z / (1.0f + exp_minus(z)); }

// d silu / dz = s (1 + z (1 - s)), s = sigmoid(z).
MRISR_INLINE float silu_slope(float z) {
  const float s = 1.0f / (1.0f + exp_minus(z));
  return s * (1.0f + z * (1.0f - s));
}

}  // namespace mrisr
