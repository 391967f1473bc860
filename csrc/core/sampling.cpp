#include "sampling.h"

#include <algorithm>
#include <cmath>

#include "isa.h"
#include "parallel.h"

namespace mrisr {

void check_step(const SamplerStep& s) {
  for (int d = 0; d < 3; ++d)
    MRISR_CHECK(s.shape[d] >= 0, "sampler_step: shape[" << d << "] must not be negative; it is " << s.shape[d]);
  MRISR_CHECK(s.rows > 0, "sampler_step: the table must have at least one row; it has " << s.rows);
  MRISR_CHECK(s.low <= s.high, "sampler_step: clamp must be low <= high; it is " << s.low << ", " << s.high);
  MRISR_CHECK(s.count() == 0 || (s.next && s.x && s.f && s.table && s.clock), "sampler_step: null pointer");
  const bool same = !s.raw && s.low == -INFINITY && s.high == INFINITY;
  MRISR_CHECK(s.count() == 0 || s.x0 || same, "sampler_step: x0 is a null pointer, and f is not x0 itself");
  if (s.noise) {
    NoiseBox box{};
    std::copy_n(s.shape, 3, box.shape);
    std::copy_n(s.origin, 3, box.origin);
    std::copy_n(s.grid, 3, box.grid);
    check_noise(box);
  }
}

namespace cpu {
namespace {

constexpr Index kBlock = 1024;  // what a block reads and writes stays in the L1 cache between its loops

MRISR_INLINE void step_block_body(const SamplerStep& s, const StepRow& r, Index first, Index n, std::uint64_t voxel) {
  const float* __restrict__ x = s.x + first;
  const float* v = static_cast<const float*>(s.f) + first;
  float* __restrict__ next = s.next + first;
  if (s.x0 != nullptr) {
    float* __restrict__ x0 = s.x0 + first;
    if (s.raw)
      for (Index i = 0; i < n; ++i) x0[i] = step_clamp(r.c_skip * x[i] + r.c_out * v[i], s.low, s.high);
    else
      for (Index i = 0; i < n; ++i) x0[i] = step_clamp(v[i], s.low, s.high);
    v = x0;
  }
  for (Index i = 0; i < n; ++i) next[i] = r.a * x[i] + r.b * v[i];
  if (s.before != nullptr) {
    const float* __restrict__ before = s.before + first;
    for (Index i = 0; i < n; ++i) next[i] += r.c * before[i];
  }
  if (s.noise)
    for (Index i = 0; i < n; ++i) next[i] += r.d * step_normal(r, voxel + static_cast<std::uint64_t>(i));
}
MRISR_VARIANTS(step_block, step_block_body,
               (const SamplerStep& s, const StepRow& r, Index first, Index n, std::uint64_t voxel),
               (s, r, first, n, voxel))

}  // namespace

void sampler_step(const SamplerStep& s, int threads) {
  check_step(s);
  if (s.count() == 0) return;
  const StepRow r = step_row(s);
  const Index row = s.shape[2];
  parallel_for(s.count(), 32 * kBlock, threads, [&](Index begin, Index end) {
    for (Index i = begin; i < end;) {
      // Voxels are consecutive in the grid along a row of the box only.
      const Index line = i / row, z = i % row, x = line / s.shape[1], y = line % s.shape[1];
      const Index n = std::min({end - i, kBlock, s.noise ? row - z : kBlock});
      const Index voxel = ((s.origin[0] + x) * s.grid[1] + s.origin[1] + y) * s.grid[2] + s.origin[2] + z;
      step_block(s, r, i, n, static_cast<std::uint64_t>(voxel));
      i += n;
    }
  });
}

}  // namespace cpu
}  // namespace mrisr
