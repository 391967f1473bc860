#include "tiles.h"

#include <algorithm>
#include <cstring>

#include "isa.h"
#include "parallel.h"

namespace mrisr {
namespace cpu {
namespace {

MRISR_INLINE void add_row_body(float* __restrict__ to, const float* __restrict__ from, const float* __restrict__ w,
                               float scale, Index n) {
  for (Index k = 0; k < n; ++k) to[k] += from[k] * (scale * w[k]);
}
MRISR_VARIANTS(add_row, add_row_body,
               (float* __restrict__ to, const float* __restrict__ from, const float* __restrict__ w, float scale,
                Index n),
               (to, from, w, scale, n))

void check_pair(const View<const float, 3>& a, const View<const float, 3>& b, const char* op) {
  check_view(a, op, "volume");
  check_view(b, op, "tile");
  MRISR_CHECK((a.stride[2] == 1 || a.size[2] <= 1) && (b.stride[2] == 1 || b.size[2] <= 1),
              op << ": the last axis of volume and tile must be contiguous; strides are " << a.stride[2] << " and "
                 << b.stride[2]);
}

View<const float, 3> as_const(const View<float, 3>& v) { return {v.data, v.size, v.stride}; }

Index grain(Index row) { return 1 + 32768 / (1 + row); }

}  // namespace

void blend_add(const View<float, 3>& volume, const View<const float, 3>& tile, const Index origin[3],
               const float* const weights[3], int threads) {
  check_pair(as_const(volume), tile, "blend_add");
  Index n[3];
  for (int d = 0; d < 3; ++d) {
    MRISR_CHECK(origin[d] >= 0 && origin[d] <= volume.size[d],
                "blend_add: origin[" << d << "] must lie in [0, " << volume.size[d] << "]; it is " << origin[d]);
    MRISR_CHECK(tile.size[d] == 0 || weights[d] != nullptr, "blend_add: weights[" << d << "] is a null pointer");
    n[d] = std::min(tile.size[d], volume.size[d] - origin[d]);
  }
  if (n[0] == 0 || n[1] == 0 || n[2] == 0) return;
  float* base = volume.data + origin[0] * volume.stride[0] + origin[1] * volume.stride[1] + origin[2];
  parallel_for(n[0] * n[1], grain(n[2]), threads, [&](Index begin, Index end) {
    for (Index row = begin; row < end; ++row) {
      const Index i = row / n[1], j = row % n[1];
      const float scale = weights[0][i] * weights[1][j];
      if (scale == 0.0f) continue;  // trimmed rows: a NaN there is not ours to spread
      add_row(base + i * volume.stride[0] + j * volume.stride[1], tile.data + i * tile.stride[0] + j * tile.stride[1],
              weights[2], scale, n[2]);
    }
  });
}

void gather(const View<float, 3>& tile, const View<const float, 3>& volume, const Index origin[3], int threads) {
  check_pair(volume, as_const(tile), "gather");
  if (tile.count() == 0) return;
  for (int d = 0; d < 3; ++d)
    MRISR_CHECK(volume.size[d] > 0, "gather: volume.size[" << d << "] must be positive to repeat its edge; it is 0");
  const auto clamp = [&](int d, Index i) { return std::max<Index>(0, std::min(i, volume.size[d] - 1)); };
  const Index n2 = tile.size[2];
  // Columns [inner, outer) of the row lie inside the volume.
  const Index inner = std::max<Index>(0, std::min(n2, -origin[2]));
  const Index outer = std::max(inner, std::min(n2, volume.size[2] - origin[2]));
  parallel_for(tile.size[0] * tile.size[1], grain(n2), threads, [&](Index begin, Index end) {
    for (Index row = begin; row < end; ++row) {
      const Index i = row / tile.size[1], j = row % tile.size[1];
      const float* from =
          volume.data + clamp(0, origin[0] + i) * volume.stride[0] + clamp(1, origin[1] + j) * volume.stride[1];
      float* to = tile.data + i * tile.stride[0] + j * tile.stride[1];
      std::fill(to, to + inner, from[0]);
      if (outer > inner) std::memcpy(to + inner, from + origin[2] + inner, sizeof(float) * (outer - inner));
      std::fill(to + outer, to + n2, from[volume.size[2] - 1]);
    }
  });
}

}  // namespace cpu
}  // namespace mrisr
