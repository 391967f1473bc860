#include "misfit.h"

#include "isa.h"
#include "parallel.h"

namespace mrisr::cpu {
namespace {

constexpr Index kLanes = 8;  // sums side by side

MRISR_INLINE void misfit_plane_body(float* __restrict__ made, const float* __restrict__ scan, float level, Index n,
                                    double* __restrict__ to) {
  double sums[kLanes] = {}, counts[kLanes] = {};
  const auto take = [&](Index i, Index lane) {
    const bool inside = scan[i] > level;
    const float left = inside ? scan[i] - made[i] : 0.0f;
    made[i] = left;
    sums[lane] += static_cast<double>(left) * static_cast<double>(left);
    counts[lane] += inside ? 1.0 : 0.0;
  };
  Index i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (Index lane = 0; lane < kLanes; ++lane) take(i + lane, lane);
  for (; i < n; ++i) take(i, 0);
  for (Index lane = 1; lane < kLanes; ++lane) sums[0] += sums[lane], counts[0] += counts[lane];
  to[0] = sums[0];
  to[1] = counts[0];
}
MRISR_VARIANTS(misfit_plane, misfit_plane_body,
               (float* __restrict__ made, const float* __restrict__ scan, float level, Index n,
                double* __restrict__ to),
               (made, scan, level, n, to))

}  // namespace

Misfit misfit(float* made, const float* scan, float level, Index planes, Index plane, double* partial, int threads) {
  check_view(contiguous3(made, 1, planes, plane), "misfit", "made");
  check_view(contiguous3(scan, 1, planes, plane), "misfit", "scan");
  parallel_for(planes, 4, threads, [&](Index begin, Index end) {
    for (Index x = begin; x < end; ++x) misfit_plane(made + x * plane, scan + x * plane, level, plane, partial + 2 * x);
  });
  Misfit all;
  for (Index x = 0; x < planes; ++x) {
    all.squares += partial[2 * x];
    all.voxels += static_cast<Index>(partial[2 * x + 1]);
  }
  return all;
}

}  // namespace mrisr::cpu
