#include "blocks.h"

#include <cstring>

#include "isa.h"
#include "pages.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace mrisr {
namespace cpu {
namespace {

constexpr Index kStreamBytes = Index{24} << 20;  // results from this size on leave the caches before they are wanted

MRISR_INLINE float as_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

MRISR_INLINE std::uint32_t as_bits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

MRISR_INLINE void widen_bf16_body(float* __restrict__ to, const std::uint16_t* __restrict__ from, Index count) {
  for (Index i = 0; i < count; ++i) to[i] = as_float(static_cast<std::uint32_t>(from[i]) << 16);
}
MRISR_VARIANTS(widen_bf16, widen_bf16_body,
               (float* __restrict__ to, const std::uint16_t* __restrict__ from, Index count), (to, from, count))

// Round to nearest even; a NaN stays one (its payload could otherwise round to infinity).
MRISR_INLINE void narrow_bf16_body(std::uint16_t* __restrict__ to, const float* __restrict__ from, Index count) {
  for (Index i = 0; i < count; ++i) {
    const std::uint32_t bits = as_bits(from[i]);
    const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    to[i] = static_cast<std::uint16_t>(from[i] != from[i] ? 0x7fc0u : rounded);
  }
}
MRISR_VARIANTS(narrow_bf16, narrow_bf16_body,
               (std::uint16_t* __restrict__ to, const float* __restrict__ from, Index count), (to, from, count))

// The exponent is shifted into place and rebased by a product with 2^112, which makes subnormals normal as well.
MRISR_INLINE void widen_f16_body(float* __restrict__ to, const std::uint16_t* __restrict__ from, Index count) {
  for (Index i = 0; i < count; ++i) {
    const std::uint32_t h = from[i];
    const std::uint32_t rebased = as_bits(as_float((h & 0x7fffu) << 13) * as_float(0x77800000u));
    const std::uint32_t special = (h & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
    to[i] = as_float(rebased | special | ((h & 0x8000u) << 16));
  }
}
MRISR_VARIANTS(widen_f16, widen_f16_body, (float* __restrict__ to, const std::uint16_t* __restrict__ from, Index count),
               (to, from, count))

MRISR_INLINE void narrow_f16_body(std::uint16_t* __restrict__ to, const float* __restrict__ from, Index count) {
  for (Index i = 0; i < count; ++i) {
    const std::uint32_t bits = as_bits(from[i]), size = bits & 0x7fffffffu;
    const std::uint32_t normal = (size - 0x38000000u + 0xfffu + ((size >> 13) & 1u)) >> 13;
    // Adding 0.5 lets the sum's rounding cut the mantissa where a float16 subnormal ends.
    const std::uint32_t tiny = as_bits(as_float(size) + 0.5f) - 0x3f000000u;
    const std::uint32_t huge = size > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const std::uint32_t finite = size < 0x38800000u ? tiny : normal;
    to[i] = static_cast<std::uint16_t>((size >= 0x47800000u ? huge : finite) | ((bits >> 16) & 0x8000u));
  }
}
MRISR_VARIANTS(narrow_f16, narrow_f16_body,
               (std::uint16_t* __restrict__ to, const float* __restrict__ from, Index count), (to, from, count))

void widen(float* to, const std::uint16_t* from, Index count, Dtype dtype) {
  dtype == Dtype::f16 ? widen_f16(to, from, count) : widen_bf16(to, from, count);
}

void narrow(std::uint16_t* to, const float* from, Index count, Dtype dtype) {
  dtype == Dtype::f16 ? narrow_f16(to, from, count) : narrow_bf16(to, from, count);
}

// Past the caches, 16 bytes at a time: the processor joins them into lines. `to` is aligned as floats are.
void stream_copy(float* to, const float* from, Index count) {
  Index i = 0;
#if defined(__SSE2__)
  for (; i < count && reinterpret_cast<std::uintptr_t>(to + i) % 16 != 0; ++i) to[i] = from[i];
  for (; i + 16 <= count; i += 16)
    for (Index k = 0; k < 16; k += 4) _mm_stream_ps(to + i + k, _mm_loadu_ps(from + i + k));
#endif
  std::memcpy(to + i, from + i, static_cast<std::size_t>(count - i) * sizeof(float));
}

}  // namespace

const float* Source::read(Index at, Index count, float* buffer) const {
  if (dtype_ == Dtype::f32) return static_cast<const float*>(data_) + at;
  widen(buffer, static_cast<const std::uint16_t*>(data_) + at, count, dtype_);
  return buffer;
}

Sink::Sink(void* data, Dtype dtype, Index total, const void* over) : data_(data), dtype_(dtype), stream_(false) {
  const Index bytes = total * (dtype == Dtype::f32 ? 4 : 2);
  if (data == over || bytes < kStreamBytes) return;
  ask_for_large_pages(data, bytes);
#if defined(__SSE2__)
  stream_ = dtype == Dtype::f32;
#endif
}

float* Sink::place(Index at, float* buffer) const {
  return dtype_ == Dtype::f32 && !stream_ ? static_cast<float*>(data_) + at : buffer;
}

void Sink::write(Index at, Index count, const float* values) const {
  if (dtype_ != Dtype::f32) return narrow(static_cast<std::uint16_t*>(data_) + at, values, count, dtype_);
  float* to = static_cast<float*>(data_) + at;
  if (to == values) return;
  if (stream_) return stream_copy(to, values, count);
  std::memcpy(to, values, static_cast<std::size_t>(count) * sizeof(float));
}

void Sink::round(float* values, Index count) const {
  if (dtype_ == Dtype::f32) return;
  std::uint16_t stored[256];
  for (Index i = 0; i < count; i += 256) {
    const Index n = count - i < 256 ? count - i : 256;
    narrow(stored, values + i, n, dtype_);
    widen(values + i, stored, n, dtype_);
  }
}

void Sink::finish() const {
#if defined(__SSE2__)
  if (stream_) _mm_sfence();
#endif
}

}  // namespace cpu
}  // namespace mrisr
