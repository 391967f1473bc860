#include "noise.h"

#include <algorithm>

#include "isa.h"
#include "noise_math.h"
#include "noise_words.h"
#include "pages.h"
#include "parallel.h"

namespace mrisr {

void check_noise(const NoiseBox& box) {
  for (int d = 0; d < 3; ++d) {
    MRISR_CHECK(box.shape[d] >= 0, "noise: shape[" << d << "] must not be negative; it is " << box.shape[d]);
    MRISR_CHECK(box.grid[d] > 0, "noise: grid_shape[" << d << "] must be positive; it is " << box.grid[d]);
    MRISR_CHECK(box.origin[d] >= 0 && box.shape[d] <= box.grid[d] && box.origin[d] <= box.grid[d] - box.shape[d],
                "noise: the box must lie inside the grid; on axis " << d << " it starts at " << box.origin[d]
                                                                    << " with " << box.shape[d]
                                                                    << " voxels, and the grid has " << box.grid[d]);
  }
}

namespace cpu {
namespace {

MRISR_INLINE void normals_body(float* out, Index n, const std::uint32_t* w0, const std::uint32_t* w1) {
  for (Index i = 0; i < n; ++i) out[i] = noise::box_muller(w0[i], w1[i]);
}
MRISR_VARIANTS(normals, normals_body, (float* out, Index n, const std::uint32_t* w0, const std::uint32_t* w1),
               (out, n, w0, w1))

void normal_row(float* out, Index n, std::uint64_t first, const NoiseKey& key) {
  std::uint32_t w0[kNoiseChunk], w1[kNoiseChunk];
  for (Index i = 0; i < n; i += kNoiseChunk) {
    const Index count = std::min(kNoiseChunk, n - i);
    noise_words(w0, w1, count, first + static_cast<std::uint64_t>(i), key);
    normals(out + i, count, w0, w1);
  }
}

std::uint64_t row_start(const NoiseBox& box, Index row) {
  const Index x = box.origin[0] + row / box.shape[1], y = box.origin[1] + row % box.shape[1];
  return static_cast<std::uint64_t>((x * box.grid[1] + y) * box.grid[2] + box.origin[2]);
}

Index grain(const NoiseBox& box) { return 1 + 8192 / (1 + box.shape[2]); }

}  // namespace

void normal_noise(float* out, const NoiseBox& box, int threads) {
  check_noise(box);
  const Index rows = box.shape[0] * box.shape[1];
  MRISR_CHECK(rows * box.shape[2] == 0 || out != nullptr, "noise: out is a null pointer");
  const NoiseKey key{static_cast<std::uint32_t>(box.seed), static_cast<std::uint32_t>(box.seed >> 32), box.sample,
                     box.step};
  ask_for_large_pages(out, rows * box.shape[2] * static_cast<Index>(sizeof(float)));
  parallel_for(rows, grain(box), threads, [&](Index begin, Index end) {
    for (Index row = begin; row < end; ++row)
      normal_row(out + row * box.shape[2], box.shape[2], row_start(box, row), key);
  });
}

void philox_words(std::uint32_t* words, const NoiseBox& box, int threads) {
  check_noise(box);
  const Index rows = box.shape[0] * box.shape[1];
  MRISR_CHECK(rows * box.shape[2] == 0 || words != nullptr, "noise: words is a null pointer");
  const auto k0 = static_cast<std::uint32_t>(box.seed), k1 = static_cast<std::uint32_t>(box.seed >> 32);
  parallel_for(rows, grain(box), threads, [&](Index begin, Index end) {
    for (Index row = begin; row < end; ++row) {
      for (Index i = 0; i < box.shape[2]; ++i) {
        const std::uint64_t voxel = row_start(box, row) + static_cast<std::uint64_t>(i);
        const noise::Words w = noise::philox(static_cast<std::uint32_t>(voxel), static_cast<std::uint32_t>(voxel >> 32),
                                             box.sample, box.step, k0, k1);
        std::uint32_t* to = words + 4 * (row * box.shape[2] + i);
        to[0] = w.w0;
        to[1] = w.w1;
        to[2] = w.w2;
        to[3] = w.w3;
      }
    }
  });
}

}  // namespace cpu
}  // namespace mrisr
