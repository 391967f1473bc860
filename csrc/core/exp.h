// exp in a form that vectorises inside MRISR_VARIANTS loops.
#pragma once

#include <cstdint>
#include <cstring>

#include "isa.h"

namespace mrisr {

// exp(t) to about 1e-7, NaN in NaN out, without a branch or a call: range reduction and the Cephes polynomial.
// Below -87 and above 88 the result is that of the bound.
MRISR_INLINE float exp_inline(float t) {
  t = t > 88.0f ? 88.0f : t;
  t = t < -87.0f ? -87.0f : t;
  const float shifted = t * 1.44269504088896341f + 12582912.0f;  // adding 1.5 * 2^23 rounds to an integer
  const float n = shifted - 12582912.0f;
  const float r = (t - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float y = p * r * r + r + 1.0f;
  std::uint32_t bits, exponent;
  std::memcpy(&bits, &y, 4);
  std::memcpy(&exponent, &shifted, 4);
  bits += exponent << 23;
  float result;
  std::memcpy(&result, &bits, 4);
  return y != y ? y : result;
}

}  // namespace mrisr
