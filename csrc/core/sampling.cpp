#include "sampling.h"

#include <algorithm>
#include <cmath>

#include "isa.h"
#include "noise_words.h"
#include "pages.h"
#include "parallel.h"

namespace mrisr {

void check_step(const SamplerStep& s) {
  MRISR_CHECK(s.count >= 0, "sampler_step: count must not be negative; it is " << s.count);
  MRISR_CHECK(s.rows > 0, "sampler_step: the table must have at least one row; it has " << s.rows);
  MRISR_CHECK(s.low <= s.high, "sampler_step: clamp must be low <= high; it is " << s.low << ", " << s.high);
  MRISR_CHECK(s.count == 0 || (s.next && s.x && s.f && s.table && s.clock), "sampler_step: null pointer");
  const bool same = s.low == -INFINITY && s.high == INFINITY;
  MRISR_CHECK(s.count == 0 || s.x0 || same, "sampler_step: x0 is a null pointer, and f is not x0 itself");
}

namespace cpu {
namespace {

constexpr Index kBlock = 1024;  // what a block reads and writes stays in the L1 cache between its loops

MRISR_INLINE void add_normals_body(float* next, Index n, float d, const std::uint32_t* w0, const std::uint32_t* w1) {
  for (Index i = 0; i < n; ++i) next[i] += d * noise::box_muller(w0[i], w1[i]);
}
MRISR_VARIANTS(add_normals, add_normals_body,
               (float* next, Index n, float d, const std::uint32_t* w0, const std::uint32_t* w1), (next, n, d, w0, w1))

void add_noise(float* next, Index n, const StepRow& r, Index first) {
  std::uint32_t w0[kNoiseChunk], w1[kNoiseChunk];
  for (Index i = 0; i < n; i += kNoiseChunk) {
    const Index count = std::min(kNoiseChunk, n - i);
    noise_words(w0, w1, count, static_cast<std::uint64_t>(first + i), {r.k0, r.k1, r.sample, r.step});
    add_normals(next + i, count, r.d, w0, w1);
  }
}

// One loop for every combination of what there is: a value is read once and written once.
template <bool kClamp, bool kBefore>
MRISR_INLINE void step_loop(const SamplerStep& s, const StepRow& r, Index first, Index n) {
  const float* __restrict__ x = s.x + first;
  const float* v = static_cast<const float*>(s.f) + first;  // may be x0
  const float* __restrict__ before = kBefore ? s.before + first : nullptr;
  float* x0 = kClamp ? s.x0 + first : nullptr;
  float* __restrict__ next = s.next + first;
#pragma GCC ivdep
  for (Index i = 0; i < n; ++i) {
    const float value = kClamp ? step_clamp(v[i], s.low, s.high) : v[i];
    if constexpr (kClamp) x0[i] = value;
    const float sum = r.a * x[i] + r.b * value;
    next[i] = kBefore ? sum + r.c * before[i] : sum;
  }
}

MRISR_INLINE void step_block_body(const SamplerStep& s, const StepRow& r, Index first, Index n) {
  if (s.x0 != nullptr)
    s.before != nullptr ? step_loop<true, true>(s, r, first, n) : step_loop<true, false>(s, r, first, n);
  else
    s.before != nullptr ? step_loop<false, true>(s, r, first, n) : step_loop<false, false>(s, r, first, n);
}
MRISR_VARIANTS(step_block, step_block_body, (const SamplerStep& s, const StepRow& r, Index first, Index n),
               (s, r, first, n))

}  // namespace

void sampler_step(const SamplerStep& s, int threads) {
  check_step(s);
  if (s.count == 0) return;
  const StepRow r = step_row(s);
  for (float* to : {s.next, s.x0}) ask_for_large_pages(to, s.count * static_cast<Index>(sizeof(float)));
  parallel_for(s.count, 32 * kBlock, threads, [&](Index begin, Index end) {
    for (Index i = begin; i < end; i += kBlock) {
      const Index n = std::min(end - i, kBlock);
      step_block(s, r, i, n);
      if (s.noise) add_noise(s.next + i, n, r, i);
    }
  });
}

}  // namespace cpu
}  // namespace mrisr
