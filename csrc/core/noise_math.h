// The arithmetic of the noise, shared by the CPU and the CUDA kernels (and followed by the Triton one line by line).
//
// Box-Muller from two 32-bit words, written so that float32 loses nothing that matters:
//   u = (w0 >> 9) + 1/2, times 2^-23: exact in float32, never 0 or 1; log keeps its relative precision near 1.
//   the angle in half turns, (w1 >> 8) * 2^-23 - 1 in [-1, 1), exact; it is reduced exactly to [-1/4, 1/4]
//   before anything is rounded (2 pi t rounded first would cost 2e-6 after multiplication with the radius).
// Both powers of two are left where they change no digit: in the exponent that the logarithm takes off, and in pi.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define MRISR_NOISE_FN __host__ __device__ __forceinline__
#else
#define MRISR_NOISE_FN inline __attribute__((always_inline))
#endif

namespace mrisr {
namespace noise {

constexpr std::uint32_t kM0 = 0xD2511F53u, kM1 = 0xCD9E8D57u, kW0 = 0x9E3779B9u, kW1 = 0xBB67AE85u;

struct Words {
  std::uint32_t w0, w1, w2, w3;
};

MRISR_NOISE_FN Words philox(std::uint32_t c0, std::uint32_t c1, std::uint32_t c2, std::uint32_t c3, std::uint32_t k0,
                            std::uint32_t k1) {
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = static_cast<std::uint64_t>(kM0) * c0;
    const std::uint64_t p1 = static_cast<std::uint64_t>(kM1) * c2;
    const std::uint32_t n0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1 ^ k0;
    const std::uint32_t n2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<std::uint32_t>(p1);
    c3 = static_cast<std::uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += kW0;
    k1 += kW1;
  }
  return {c0, c1, c2, c3};
}

MRISR_NOISE_FN float as_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
MRISR_NOISE_FN std::uint32_t as_bits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// log(k 2^-23) for k in [1/2, 2^23): the argument is m * 2^e with m in [sqrt(1/2), sqrt(2)); log m by the Cephes polynomial
// in m - 1.
MRISR_NOISE_FN float log_scaled(float k) {
  const std::uint32_t shifted = as_bits(k) - (0x3f3504f3u + (23u << 23));
  const std::int32_t e = static_cast<std::int32_t>(shifted) >> 23;
  const float x = as_float((shifted & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  float p = 7.0376836292e-2f;
  p = p * x - 1.1514610310e-1f;
  p = p * x + 1.1676998740e-1f;
  p = p * x - 1.2420140846e-1f;
  p = p * x + 1.4249322787e-1f;
  p = p * x - 1.6668057665e-1f;
  p = p * x + 2.0000714765e-1f;
  p = p * x - 2.4999993993e-1f;
  p = p * x + 3.3333331174e-1f;
  const float z = x * x;
  const float f = static_cast<float>(e);
  float y = x * z * p;
  y = y + f * -2.12194440e-4f;
  y = y - 0.5f * z;
  return (x + y) + f * 0.693359375f;
}

// cos(pi t 2^-23) for whole t in [-2^23, 2^23]. |t| is folded to the nearest of 0, 1/2, 1 half turns; the rest, at most a
// quarter, is a whole number still, so that nothing has been rounded. Sine and cosine of it are one polynomial with two sets of
// coefficients: a processor that computes many at once would have to compute both.
MRISR_NOISE_FN float cos_scaled(float t) {
  constexpr float kHalf = 4194304.0f;  // 2^22: half of a half turn
  const float d = kHalf - fabsf(t), from_half = fabsf(d);
  const bool sine = from_half < 0.5f * kHalf;
  const float v = (sine ? d : kHalf - from_half) * (3.14159265358979f * 1.1920928955078125e-7f);
  const float v2 = v * v;
  const float c1 = sine ? -1.6666654611e-1f : 4.166664568298827e-2f;
  const float c2 = sine ? 8.3321608736e-3f : -1.388731625493765e-3f;
  const float c3 = sine ? -1.9515295891e-4f : 2.443315711809948e-5f;
  const float first = sine ? v : 1.0f - 0.5f * v2;
  const float value = first + (sine ? v : v2) * v2 * (c1 + v2 * (c2 + v2 * c3));
  return as_float(as_bits(value) ^ (sine ? 0u : as_bits(d) & 0x80000000u));
}

MRISR_NOISE_FN float box_muller(std::uint32_t w0, std::uint32_t w1) {
  const float k = static_cast<float>(static_cast<std::int32_t>(w0 >> 9)) + 0.5f;
  const float t = static_cast<float>(static_cast<std::int32_t>(w1 >> 8)) - 8388608.0f;
  return sqrtf(-2.0f * log_scaled(k)) * cos_scaled(t);
}

}  // namespace noise
}  // namespace mrisr
