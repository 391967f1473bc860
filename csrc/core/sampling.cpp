#include "sampling.h"

#include <algorithm>
#include <cmath>

#include "isa.h"
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

MRISR_INLINE void step_block_body(const SamplerStep& s, const StepRow& r, Index first, Index n) {
  const float* __restrict__ x = s.x + first;
  const float* v = static_cast<const float*>(s.f) + first;
  float* __restrict__ next = s.next + first;
  if (s.x0 != nullptr) {
    float* x0 = s.x0 + first;  // may be f
#pragma GCC ivdep
    for (Index i = 0; i < n; ++i) x0[i] = step_clamp(v[i], s.low, s.high);
    v = x0;
  }
  for (Index i = 0; i < n; ++i) next[i] = r.a * x[i] + r.b * v[i];
  if (s.before != nullptr) {
    const float* __restrict__ before = s.before + first;
    for (Index i = 0; i < n; ++i) next[i] += r.c * before[i];
  }
  if (s.noise)
    for (Index i = 0; i < n; ++i) next[i] += r.d * step_normal(r, static_cast<std::uint64_t>(first + i));
}
MRISR_VARIANTS(step_block, step_block_body,
               (const SamplerStep& s, const StepRow& r, Index first, Index n), (s, r, first, n))

}  // namespace

void sampler_step(const SamplerStep& s, int threads) {
  check_step(s);
  if (s.count == 0) return;
  const StepRow r = step_row(s);
  parallel_for(s.count, 32 * kBlock, threads, [&](Index begin, Index end) {
    for (Index i = begin; i < end; i += kBlock) step_block(s, r, i, std::min(end - i, kBlock));
  });
}

}  // namespace cpu
}  // namespace mrisr
