#include "noise_words.h"

#include <algorithm>

#include "isa.h"
#include "noise_math.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define MRISR_PHILOX_X86
#include <immintrin.h>
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12 takes its own _mm512_undefined for an accident
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#endif

namespace mrisr {
namespace cpu {
namespace {

void any_words(std::uint32_t* w0, std::uint32_t* w1, Index n, std::uint64_t first, const NoiseKey& key) {
  for (Index i = 0; i < n; ++i) {
    const std::uint64_t voxel = first + static_cast<std::uint64_t>(i);
    const noise::Words w = noise::philox(static_cast<std::uint32_t>(voxel), static_cast<std::uint32_t>(voxel >> 32),
                                         key.sample, key.step, key.k0, key.k1);
    w0[i] = w.w0;
    w1[i] = w.w1;
  }
}

#ifdef MRISR_PHILOX_X86

// The first two rounds, as far as they are the same for all voxels with one upper word.
struct Start {
  std::uint32_t to_c2;           // round 1: c2 = upper(m0 voxel) ^ to_c2, c3 = m0 voxel
  std::uint32_t to_c0, from_c3;  // round 2: c0 = upper(m1 c2) ^ to_c0, c1 = m1 c2, c2 = c3 ^ from_c3
  std::uint32_t c3;

  Start(std::uint32_t upper, const NoiseKey& key) {
    const std::uint64_t p1 = static_cast<std::uint64_t>(noise::kM1) * key.sample;
    const std::uint32_t c0 = static_cast<std::uint32_t>(p1 >> 32) ^ upper ^ key.k0;
    const std::uint64_t p0 = static_cast<std::uint64_t>(noise::kM0) * c0;
    to_c2 = key.step ^ key.k1;
    to_c0 = static_cast<std::uint32_t>(p1) ^ (key.k0 + noise::kW0);
    from_c3 = static_cast<std::uint32_t>(p0 >> 32) ^ (key.k1 + noise::kW1);
    c3 = static_cast<std::uint32_t>(p0);
  }
};

// noise::philox in lanes of 64 bits, words 0 and 1. The products read the lower halves only, so the upper ones hold what
// they like; a compiler left to itself multiplies whole lanes, or sorts halves, at three times the cost. kVectors of them
// at once, because a product is waited for several cycles.
constexpr int kVectors = 4, kRounds = 10;

MRISR_TARGET_V4 void block_v4(std::uint32_t* w0, std::uint32_t* w1, std::uint64_t first, const Start& start,
                              const NoiseKey& key) {
  const __m512i m0 = _mm512_set1_epi64(noise::kM0), m1 = _mm512_set1_epi64(noise::kM1);
  const __m512i lane = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i to_c2 = _mm512_set1_epi64(start.to_c2), to_c0 = _mm512_set1_epi64(start.to_c0);
  const __m512i from_c3 = _mm512_set1_epi64(start.from_c3);
  __m512i c0[kVectors], c1[kVectors], c2[kVectors], c3[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const __m512i voxel = _mm512_add_epi64(_mm512_set1_epi64(static_cast<long long>(first) + 8 * v), lane);
    const __m512i p0 = _mm512_mul_epu32(voxel, m0);
    c1[v] = _mm512_mul_epu32(_mm512_xor_si512(_mm512_srli_epi64(p0, 32), to_c2), m1);
    c0[v] = _mm512_xor_si512(_mm512_srli_epi64(c1[v], 32), to_c0);
    c2[v] = _mm512_xor_si512(p0, from_c3);
    c3[v] = _mm512_set1_epi64(start.c3);
  }
  std::uint32_t a = key.k0 + 2 * noise::kW0, b = key.k1 + 2 * noise::kW1;
#pragma GCC unroll 8
  for (int round = 2; round < kRounds - 1; ++round, a += noise::kW0, b += noise::kW1) {
    const __m512i k0 = _mm512_set1_epi64(a), k1 = _mm512_set1_epi64(b);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const __m512i p0 = _mm512_mul_epu32(c0[v], m0), p1 = _mm512_mul_epu32(c2[v], m1);
      c0[v] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p1, 32), c1[v], k0, 0x96);  // of all three: xor
      c2[v] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p0, 32), c3[v], k1, 0x96);
      c1[v] = p1;
      c3[v] = p0;
    }
  }
  const __m512i k0 = _mm512_set1_epi64(a);
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  for (int v = 0; v < kVectors; ++v) {
    const __m512i p1 = _mm512_mul_epu32(c2[v], m1);
    c0[v] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p1, 32), c1[v], k0, 0x96);
    c1[v] = p1;
  }
  for (int v = 0; v < kVectors; v += 2) {
    _mm512_storeu_si512(w0 + 8 * v, _mm512_permutex2var_epi32(c0[v], even, c0[v + 1]));
    _mm512_storeu_si512(w1 + 8 * v, _mm512_permutex2var_epi32(c1[v], even, c1[v + 1]));
  }
}

MRISR_TARGET_V3 void block_v3(std::uint32_t* w0, std::uint32_t* w1, std::uint64_t first, const Start& start,
                              const NoiseKey& key) {
  const __m256i m0 = _mm256_set1_epi64x(noise::kM0), m1 = _mm256_set1_epi64x(noise::kM1);
  const __m256i lane = _mm256_set_epi64x(3, 2, 1, 0), low = _mm256_setr_epi32(0, 2, 4, 6, 0, 0, 0, 0);
  const __m256i to_c2 = _mm256_set1_epi64x(start.to_c2), to_c0 = _mm256_set1_epi64x(start.to_c0);
  const __m256i from_c3 = _mm256_set1_epi64x(start.from_c3);
  __m256i c0[kVectors], c1[kVectors], c2[kVectors], c3[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const __m256i voxel = _mm256_add_epi64(_mm256_set1_epi64x(static_cast<long long>(first) + 4 * v), lane);
    const __m256i p0 = _mm256_mul_epu32(voxel, m0);
    c1[v] = _mm256_mul_epu32(_mm256_xor_si256(_mm256_srli_epi64(p0, 32), to_c2), m1);
    c0[v] = _mm256_xor_si256(_mm256_srli_epi64(c1[v], 32), to_c0);
    c2[v] = _mm256_xor_si256(p0, from_c3);
    c3[v] = _mm256_set1_epi64x(start.c3);
  }
  std::uint32_t a = key.k0 + 2 * noise::kW0, b = key.k1 + 2 * noise::kW1;
#pragma GCC unroll 8
  for (int round = 2; round < kRounds - 1; ++round, a += noise::kW0, b += noise::kW1) {
    const __m256i k0 = _mm256_set1_epi64x(a), k1 = _mm256_set1_epi64x(b);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const __m256i p0 = _mm256_mul_epu32(c0[v], m0), p1 = _mm256_mul_epu32(c2[v], m1);
      c0[v] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p1, 32), c1[v]), k0);
      c2[v] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p0, 32), c3[v]), k1);
      c1[v] = p1;
      c3[v] = p0;
    }
  }
  const __m256i k0 = _mm256_set1_epi64x(a);
  for (int v = 0; v < kVectors; ++v) {
    const __m256i p1 = _mm256_mul_epu32(c2[v], m1);
    const __m256i word0 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p1, 32), c1[v]), k0);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(w0 + 4 * v),
                     _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(word0, low)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(w1 + 4 * v),
                     _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(p1, low)));
  }
}

using Block = void (*)(std::uint32_t*, std::uint32_t*, std::uint64_t, const Start&, const NoiseKey&);

// Whole blocks where they go; of the last one what is asked for. The voxels have one upper word.
void by_blocks(std::uint32_t* w0, std::uint32_t* w1, Index n, std::uint64_t first, const NoiseKey& key, Block block,
               Index size) {
  const Start start(static_cast<std::uint32_t>(first >> 32), key);
  Index i = 0;
  for (; i + size <= n; i += size) block(w0 + i, w1 + i, first + static_cast<std::uint64_t>(i), start, key);
  if (i == n) return;
  std::uint32_t rest[2][8 * kVectors];
  block(rest[0], rest[1], first + static_cast<std::uint64_t>(i), start, key);
  std::copy(rest[0], rest[0] + (n - i), w0 + i);
  std::copy(rest[1], rest[1] + (n - i), w1 + i);
}

#endif

}  // namespace

void noise_words(std::uint32_t* w0, std::uint32_t* w1, Index n, std::uint64_t first, const NoiseKey& key) {
#ifdef MRISR_PHILOX_X86
  const bool one_upper_word = first >> 32 == (first + static_cast<std::uint64_t>(std::max<Index>(n, 1)) - 1) >> 32;
  if (!one_upper_word) return any_words(w0, w1, n, first, key);
  if (isa() == Isa::v4) return by_blocks(w0, w1, n, first, key, block_v4, 8 * kVectors);
  if (isa() == Isa::v3) return by_blocks(w0, w1, n, first, key, block_v3, 4 * kVectors);
#endif
  any_words(w0, w1, n, first, key);
}

}  // namespace cpu
}  // namespace mrisr
