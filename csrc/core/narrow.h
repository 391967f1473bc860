// float32 from and to the half precisions, by their bits: round to nearest even, NaN stays NaN.
#pragma once

#include <cstdint>
#include <cstring>

namespace mrisr {
namespace cpu {

inline float widen(float v) { return v; }
struct Half {
  std::uint16_t bits;
};
struct Bfloat {
  std::uint16_t bits;
};

inline float widen(Bfloat v) {
  const std::uint32_t bits = static_cast<std::uint32_t>(v.bits) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

inline float widen(Half v) {
  const std::uint32_t sign = static_cast<std::uint32_t>(v.bits & 0x8000) << 16, rest = v.bits & 0x7fff;
  float out;
  if (rest >= 0x7c00) {  // infinity, NaN
    const std::uint32_t bits = sign | 0x7f800000u | (rest & 0x3ff) << 13;
    std::memcpy(&out, &bits, 4);
    return out;
  }
  // The exponent is shifted in place and rescaled by 2^112: subnormals come out right too.
  const std::uint32_t bits = rest << 13;
  std::memcpy(&out, &bits, 4);
  out *= 5.192296858534828e33f;
  return sign ? -out : out;
}

inline void narrow(float* to, float v) { *to = v; }

inline void narrow(Bfloat* to, float v) {
  std::uint32_t bits;
  std::memcpy(&bits, &v, 4);
  if (v != v)
    bits |= 0x00400000u;  // stays NaN when the lower half is cut off
  else
    bits += 0x7fffu + (bits >> 16 & 1);
  to->bits = static_cast<std::uint16_t>(bits >> 16);
}

inline void narrow(Half* to, float v) {
  std::uint32_t bits;
  std::memcpy(&bits, &v, 4);
  const std::uint32_t sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffffu;
  std::uint32_t out;
  if (bits > 0x7f800000u) {
    out = 0x7e00;
  } else if (bits >= 0x477ff000u) {  // rounds to 65536 or more
    out = 0x7c00;
  } else if (bits < 0x38800000u) {  // subnormal: the float unit rounds when 0.5 is added
    float a;
    std::memcpy(&a, &bits, 4);
    a += 0.5f;
    std::memcpy(&out, &a, 4);
    out -= 0x3f000000u;
  } else {
    out = (bits - 0x38000000u + 0xfffu + (bits >> 13 & 1)) >> 13;
  }
  to->bits = static_cast<std::uint16_t>(sign | out);
}

}  // namespace cpu
}  // namespace mrisr
